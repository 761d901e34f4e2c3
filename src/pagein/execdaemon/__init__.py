"""Daemons written for the real /dev/cachefiles, unmodified, against our kernel half.

A supervisor gets their few system calls in which the two devices differ (design decision 1) by
seccomp user notifications, and makes them right. See docs/exec-daemon.md.
"""
