/* The client of the measurements of names: light, so that the file system is what takes the time.
 *
 *     scan_names stat COUNT     stat plate.000000.exr … in the current folder
 *     scan_names list COUNT     read the current folder and stat what it holds, as ls -l does
 *
 * Prints the nanoseconds that it took; fails when there are not COUNT names.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static long long now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static long stat_names(long count)
{
	struct stat found;
	char name[32];
	long number;

	for (number = 0; number < count; number++) {
		snprintf(name, sizeof name, "plate.%06ld.exr", number);
		if (lstat(name, &found)) {
			perror(name);
			return number;
		}
	}
	return number;
}

static long list_names(void)
{
	DIR *folder = opendir(".");
	struct dirent *entry;
	struct stat found;
	long number = 0;

	if (!folder) {
		perror(".");
		return 0;
	}
	while ((entry = readdir(folder))) {
		if (entry->d_name[0] == '.')
			continue;
		if (fstatat(dirfd(folder), entry->d_name, &found, AT_SYMLINK_NOFOLLOW)) {
			perror(entry->d_name);
			return number;
		}
		number++;
	}
	closedir(folder);
	return number;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	long count = strtol(argv[2], NULL, 10);
	long long began = now();
	long number = strcmp(argv[1], "list") ? stat_names(count) : list_names();
	long long ended = now();
	if (number != count) {
		fprintf(stderr, "scan_names: %ld names, expected %ld\n", number, count);
		return 1;
	}
	printf("%lld\n", ended - began);
	return 0;
}
