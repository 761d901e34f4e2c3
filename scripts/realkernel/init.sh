#!/bin/sh
# Process 1 of the guest of scripts/real-kernel. The root directory is the host's, read-only; the
# kernel's command line brought these variables:
#
#   PAGEIN_JOB   the run's directory on the host: what to run, and where its exit status goes
#   PAGEIN_KEEP  directories that stay visible wherever they are, separated by colons
#
# The disk is on /run/disk; /tmp is memory, /var/tmp on the disk.

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
umask 022

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/job /run/keep /run/disk
mount -t hostfs -o "$PAGEIN_JOB" job /run/job

number=0
IFS=:
for path in $PAGEIN_KEEP; do
    number=$((number + 1))
    mkdir "/run/keep/$number"
    mount --bind "$path" "/run/keep/$number"
done
mount -t ext4 /dev/ubda /run/disk
mkdir -m 1777 -p /run/disk/tmp
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount --bind /run/disk/tmp /var/tmp
number=0
for path in $PAGEIN_KEEP; do
    number=$((number + 1))
    [ -e "$path" ] || { mkdir -p "$path" && mount --bind "/run/keep/$number" "$path"; }
done
unset IFS

ip link set lo up
stty -F /dev/tty1 raw -echo
stty -F /dev/tty2 raw -echo
sh /run/job/command </dev/null >/dev/tty1 2>/dev/tty2
status=$?
# stty waits until what was written before has left.
stty -F /dev/tty1 raw
stty -F /dev/tty2 raw
echo "$status" >/run/job/status
sync
# No init system here: RB_POWER_OFF.
exec python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)'
