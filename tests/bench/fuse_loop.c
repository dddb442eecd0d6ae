/* A minimal file system over /dev/fuse: what a look-up costs when hardly anybody stands behind it.
 *
 *     fuse_loop MOUNTPOINT COUNT
 *
 * Mounts a folder with COUNT files, plate.000000.exr and on, and serves it until it is unmounted; needs root. One
 * thread reads a request and writes its answer. Names, sizes and attributes come from arithmetic. The kernel is given
 * the same INIT flags, mount options and infinite timeouts as by damfs, so that what differs is who answers.
 * Prints "ready" when it is mounted. Source: linux/fuse.h, protocol 7.38.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FIRST_FILE 2
#define NEVER ((uint64_t)1 << 40)
#define BUFFER_BYTES 65536
#define REPLY_BYTES (1 << 20)

static uint64_t count;
static int device;
static char request[BUFFER_BYTES];
static char reply[REPLY_BYTES];

static void answer(uint64_t unique, int error, const void *body, size_t size)
{
	struct fuse_out_header head = {.len = sizeof head + size, .error = -error, .unique = unique};
	struct iovec parts[2] = {{&head, sizeof head}, {(void *)body, size}};
	/* ENOENT: who asked was interrupted. ENODEV: unmounted. */
	if (writev(device, parts, size ? 2 : 1) < 0 && errno != ENOENT && errno != ENODEV) {
		perror("fuse_loop: answer");
		exit(1);
	}
}

static void fill_attr(struct fuse_attr *attr, uint64_t node)
{
	memset(attr, 0, sizeof *attr);
	attr->ino = node;
	attr->nlink = 1;
	attr->blksize = 4096;
	attr->mtime = attr->ctime = attr->atime = 1700000000;
	if (node == FUSE_ROOT_ID) {
		attr->mode = S_IFDIR | 0755;
		return;
	}
	attr->mode = S_IFREG | 0644;
	attr->size = 1000 + node % 65536;
	attr->blocks = (attr->size + 511) / 512;
}

static void fill_entry(struct fuse_entry_out *entry, uint64_t node)
{
	memset(entry, 0, sizeof *entry);
	entry->nodeid = node;
	entry->entry_valid = entry->attr_valid = NEVER;
	fill_attr(&entry->attr, node);
}

static void init(const struct fuse_in_header *head, const struct fuse_init_in *in)
{
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_readahead = in->max_readahead,
		.flags = in->flags & (FUSE_ASYNC_READ | FUSE_PARALLEL_DIROPS | FUSE_DO_READDIRPLUS | FUSE_CACHE_SYMLINKS |
		                      FUSE_MAX_PAGES | FUSE_NO_OPENDIR_SUPPORT | FUSE_EXPLICIT_INVAL_DATA),
		.max_background = 256,
		.congestion_threshold = 192,
		.max_write = 4096,
		.time_gran = 1,
		.max_pages = 256,
	};
	answer(head->unique, 0, &out, sizeof out);
}

static void lookup(const struct fuse_in_header *head, const char *name)
{
	struct fuse_entry_out out;
	unsigned long number;
	char rest[8];

	if (head->nodeid != FUSE_ROOT_ID || sscanf(name, "plate.%6lu.%3s", &number, rest) != 2 || strcmp(rest, "exr") ||
	    number >= count)
		return answer(head->unique, ENOENT, NULL, 0);
	fill_entry(&out, FIRST_FILE + number);
	answer(head->unique, 0, &out, sizeof out);
}

static void list(const struct fuse_in_header *head, const struct fuse_read_in *in, int plus)
{
	size_t used = 0, limit = in->size < REPLY_BYTES ? in->size : REPLY_BYTES;
	char name[32];

	for (uint64_t number = in->offset; number < count; number++) {
		size_t length = snprintf(name, sizeof name, "plate.%06lu.exr", (unsigned long)number);
		size_t before = plus ? sizeof(struct fuse_entry_out) : 0;
		size_t whole = before + FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + length);
		struct fuse_dirent *entry = (struct fuse_dirent *)(reply + used + before);

		if (used + whole > limit)
			break;
		memset(reply + used, 0, whole);
		if (plus)
			fill_entry((struct fuse_entry_out *)(reply + used), FIRST_FILE + number);
		entry->ino = FIRST_FILE + number;
		entry->off = number + 1;
		entry->namelen = length;
		entry->type = S_IFREG >> 12;
		memcpy(entry->name, name, length);
		used += whole;
	}
	answer(head->unique, 0, reply, used);
}

static void handle(const struct fuse_in_header *head)
{
	const void *body = head + 1;

	switch (head->opcode) {
	case FUSE_INIT:
		return init(head, body);
	case FUSE_LOOKUP:
		return lookup(head, body);
	case FUSE_GETATTR: {
		struct fuse_attr_out out = {.attr_valid = NEVER};
		fill_attr(&out.attr, head->nodeid);
		return answer(head->unique, 0, &out, sizeof out);
	}
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		return list(head, body, head->opcode == FUSE_READDIRPLUS);
	case FUSE_STATFS: {
		struct fuse_statfs_out out = {.st = {.bsize = 4096, .frsize = 4096, .namelen = 255, .files = count}};
		return answer(head->unique, 0, &out, sizeof out);
	}
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
		return answer(head->unique, EOPNOTSUPP, NULL, 0);
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	default: /* also OPENDIR, RELEASEDIR and DESTROY: the kernel does not ask again */
		return answer(head->unique, ENOSYS, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	char options[128];
	ssize_t size;

	if (argc != 3) {
		fprintf(stderr, "usage: fuse_loop MOUNTPOINT COUNT\n");
		return 2;
	}
	count = strtoull(argv[2], NULL, 10);
	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (device < 0) {
		perror("fuse_loop: /dev/fuse");
		return 1;
	}
	snprintf(options, sizeof options, "fd=%d,rootmode=40755,user_id=0,group_id=0,default_permissions,allow_other",
	         device);
	if (mount("fuse_loop", argv[1], "fuse.fuse_loop", MS_RDONLY | MS_NOSUID | MS_NODEV, options)) {
		perror("fuse_loop: mount");
		return 1;
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		size = read(device, request, sizeof request);
		if (size >= 0)
			handle((const struct fuse_in_header *)request);
		else if (errno == ENODEV)
			return 0; /* unmounted */
		else if (errno != EINTR && errno != ENOENT && errno != EAGAIN) {
			perror("fuse_loop: request");
			return 1;
		}
	}
}
