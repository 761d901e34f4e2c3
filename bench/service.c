/*
 * The least that serves reads on demand from local files, as a measure for pagein's daemon.
 *
 *     service CACHE FILES [DEVICES]
 *
 * With DEVICES, the directory of a device of pagein, it is written for that one, with its two
 * differences; else for /dev/cachefiles. Binds the directory CACHE and serves the blob with cookie key KEY from the file FILES/KEY, one
 * request after the other. Fit for a benchmark only: an error ends it.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096UL
#define PIECE (1UL << 20)
#define OBJECTS 64
#define CREAD _IOW(0x98, 1, int)

enum { OPEN, CLOSE, READ };

struct message {
	uint32_t msg_id, opcode, len, object_id;
	union {
		struct {
			uint32_t volume_key_size, cookie_key_size, fd, flags;
			char keys[1024 - 32];
		} open;
		struct {
			uint64_t off, len;
		} read;
	};
};

static struct object {
	int anon, file;
} objects[OBJECTS];

static int device, files, devices = -1;
static char *buffer; /* aligned, and always there: O_DIRECT */

static void command(const char *text)
{
	if (write(device, text, strlen(text)) < 0)
		err(1, "%s", text);
}

static struct object *object_of(const struct message *message)
{
	if (message->object_id >= OBJECTS)
		errx(1, "object %u is beyond this program", message->object_id);
	return &objects[message->object_id];
}

static void serve_open(const struct message *message)
{
	struct object *object = object_of(message);
	char name[256] = "", answer[64];
	struct stat found;

	if (message->open.cookie_key_size >= sizeof(name))
		errx(1, "a cookie key of %u bytes", message->open.cookie_key_size);
	memcpy(name, message->open.keys + message->open.volume_key_size,
	       message->open.cookie_key_size);
	object->anon = message->open.fd;
	if (devices >= 0) {
		snprintf(answer, sizeof(answer), "anon/%u", message->object_id);
		object->anon = openat(devices, answer, O_WRONLY | O_CLOEXEC);
	}
	object->file = openat(files, name, O_RDONLY | O_CLOEXEC);
	if (object->file < 0 || fstat(object->file, &found))
		err(1, "%s", name);
	snprintf(answer, sizeof(answer), "copen %u,%lld", message->msg_id, (long long)found.st_size);
	command(answer);
}

static void serve_read(const struct message *message)
{
	struct object *object = object_of(message);
	uint64_t off = message->read.off & ~(PAGE - 1);
	uint64_t end = (message->read.off + message->read.len + PAGE - 1) & ~(PAGE - 1);

	while (off < end) {
		size_t length = end - off < PIECE ? end - off : PIECE;
		ssize_t count = pread(object->file, buffer, length, off);

		if (count <= 0)
			break;
		length = (count + PAGE - 1) & ~(PAGE - 1);
		memset(buffer + count, 0, length - count);
		if (pwrite(object->anon, buffer, length, off) != (ssize_t)length)
			err(1, "pwrite");
		off += length;
	}
	if (devices >= 0)
		ioctl(object->anon, CREAD, &message->msg_id);
	else
		ioctl(object->anon, CREAD, (unsigned long)message->msg_id);
}

static void serve_close(const struct message *message)
{
	struct object *object = object_of(message);

	close(object->anon);
	close(object->file);
}

int main(int argc, char **argv)
{
	struct message message;
	struct pollfd ready;
	char text[4096];

	if (argc != 3 && argc != 4)
		errx(2, "usage: service CACHE FILES [DEVICES]");
	files = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (argc == 4)
		devices = open(argv[3], O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (devices >= 0)
		device = openat(devices, "cachefiles", O_RDWR | O_CLOEXEC);
	else
		device = open("/dev/cachefiles", O_RDWR | O_CLOEXEC);
	buffer = aligned_alloc(PAGE, PIECE);
	if (files < 0 || device < 0 || !buffer)
		err(1, "start");
	memset(buffer, 0, PIECE);
	snprintf(text, sizeof(text), "dir %s", argv[1]);
	command(text);
	command("tag pagein");
	command("bind ondemand");
	ready = (struct pollfd){ .fd = device, .events = POLLIN };
	while (poll(&ready, 1, -1) > 0)
		while (read(device, &message, sizeof(message)) > 0)
			switch (message.opcode) {
			case OPEN:
				serve_open(&message);
				break;
			case READ:
				serve_read(&message);
				break;
			case CLOSE:
				serve_close(&message);
				break;
			}
	err(1, "poll");
}
