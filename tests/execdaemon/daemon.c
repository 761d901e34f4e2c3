/*
 * A daemon for the on-demand mode of CacheFiles that knows nothing of pagein. It does what
 * Documentation/filesystems/caching/cachefiles.rst says, and nothing else.
 *
 *     daemon [-j THREADS] [-d DEVICE_FD] CACHE FILES
 *
 * Binds the directory CACHE and serves the blob with the cookie key KEY from the file FILES/KEY.
 * With -d it goes on with a device that another daemon has bound, and has its requests restored.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/cachefiles.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
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

struct object {
	uint32_t id;
	int anon, file;
};

static struct object objects[OBJECTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int device, files;

static int command(const char *text)
{
	return write(device, text, strlen(text)) < 0 ? -errno : 0;
}

static void must(const char *text)
{
	if (command(text) < 0)
		err(1, "%s", text);
}

static struct object *object_of(uint32_t id, int free_too)
{
	for (int i = 0; i < OBJECTS; i++)
		if (objects[i].anon >= 0 ? objects[i].id == id : free_too)
			return &objects[i];
	return NULL;
}

static void opened(const struct cachefiles_msg *msg)
{
	const struct cachefiles_open *open = (const void *)msg->data;
	char name[256] = "", text[64];
	struct object *object;
	struct stat about;
	int file;

	memcpy(name, open->data + open->volume_key_size, open->cookie_key_size);
	fcntl(open->fd, F_SETFD, FD_CLOEXEC);
	file = openat(files, name, O_RDONLY | O_CLOEXEC);
	if (file < 0 || fstat(file, &about) < 0) {
		snprintf(text, sizeof(text), "copen %u,%d", msg->msg_id, -errno);
		command(text);
		close(open->fd);
		return;
	}
	pthread_mutex_lock(&lock);
	object = object_of(msg->object_id, 1);
	if (!object)
		errx(1, "more than %d objects", OBJECTS);
	*object = (struct object){ msg->object_id, open->fd, file };
	pthread_mutex_unlock(&lock);
	snprintf(text, sizeof(text), "copen %u,%lld", msg->msg_id, (long long)about.st_size);
	if (command(text) < 0)
		warn("%s", text);
}

static void closed(const struct cachefiles_msg *msg)
{
	struct object *object;

	pthread_mutex_lock(&lock);
	object = object_of(msg->object_id, 0);
	if (object) {
		close(object->anon);
		close(object->file);
		object->anon = -1;
	}
	pthread_mutex_unlock(&lock);
}

/* Whatever happens, the READ is completed: without data it is an I/O error of its reader. */
static void fill(const struct cachefiles_msg *msg, char *buffer)
{
	const struct cachefiles_read *read = (const void *)msg->data;
	uint64_t at = read->off & ~(PAGE - 1);
	uint64_t end = (read->off + read->len + PAGE - 1) & ~(PAGE - 1);
	struct object *found, object;

	pthread_mutex_lock(&lock);
	found = object_of(msg->object_id, 0);
	if (!found)
		errx(1, "a READ of object %u, which is not open", msg->object_id);
	object = *found;
	pthread_mutex_unlock(&lock);
	while (at < end) {
		size_t want = end - at < PIECE ? end - at : PIECE;
		ssize_t got = pread(object.file, buffer, want, at);

		if (got <= 0)
			break;
		want = (got + PAGE - 1) & ~(PAGE - 1);
		memset(buffer + got, 0, want - got);
		if (pwrite(object.anon, buffer, want, at) != (ssize_t)want) {
			warn("%zu bytes at %llu", want, (unsigned long long)at);
			break;
		}
		at += want;
	}
	if (ioctl(object.anon, CACHEFILES_IOC_READ_COMPLETE, (unsigned long)msg->msg_id) < 0)
		warn("READ %u", msg->msg_id);
}

static void *serve(void *unused)
{
	char raw[CACHEFILES_MSG_MAX_SIZE] __attribute__((aligned(8)));
	struct pollfd ready = { .fd = device, .events = POLLIN };
	struct cachefiles_msg *msg = (void *)raw;
	char *buffer = aligned_alloc(PAGE, PIECE); /* the cache is written with O_DIRECT */

	if (!buffer)
		err(1, "memory");
	memset(buffer, 0, PIECE);
	for (;;) {
		ssize_t got = read(device, raw, sizeof(raw));

		if (got < 0)
			err(1, "read");
		if (got == 0)
			poll(&ready, 1, -1);
		else if (msg->opcode == CACHEFILES_OP_OPEN)
			opened(msg);
		else if (msg->opcode == CACHEFILES_OP_CLOSE)
			closed(msg);
		else
			fill(msg, buffer);
	}
	return unused;
}

static void end(int number)
{
	(void)number;
	_exit(0);
}

int main(int argc, char **argv)
{
	int threads = 1, option;
	char text[4096];

	device = -1;
	while ((option = getopt(argc, argv, "j:d:")) != -1) {
		if (option == 'j')
			threads = atoi(optarg);
		else if (option == 'd')
			device = atoi(optarg);
		else
			return 2;
	}
	if (argc - optind != 2)
		errx(2, "usage: daemon [-j THREADS] [-d DEVICE_FD] CACHE FILES");
	for (int i = 0; i < OBJECTS; i++)
		objects[i].anon = -1;
	signal(SIGTERM, end);
	files = open(argv[optind + 1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (files < 0)
		err(1, "%s", argv[optind + 1]);
	if (device >= 0) {
		must("restore");
	} else {
		device = open("/dev/cachefiles", O_RDWR | O_CLOEXEC);
		if (device < 0)
			err(1, "/dev/cachefiles");
		snprintf(text, sizeof(text), "dir %s", argv[optind]);
		must(text);
		must("tag CacheFiles");
		must("bind ondemand");
	}
	for (pthread_t thread; threads > 1; threads--)
		if (pthread_create(&thread, NULL, serve, NULL))
			errx(1, "a thread could not be started");
	serve(NULL);
}
