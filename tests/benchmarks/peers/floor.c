/* The floor: a loop of bpf(2), MAP_UPDATE_ELEM of programs that take turns or MAP_LOOKUP_ELEM.
 * floor update|lookup TABLE COUNT PROGRAM PROGRAM: the time of COUNT entries, in seconds. Each update changes its entry,
 * as all of them have been set to the other program before. */
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long bpf(int command, union bpf_attr *attr) { return syscall(__NR_bpf, command, attr, sizeof *attr); }

static int opened(const char *path)
{
	union bpf_attr attr;
	memset(&attr, 0, sizeof attr);
	attr.pathname = (unsigned long)path;
	return bpf(BPF_OBJ_GET, &attr);
}

int main(int argc, char **argv)
{
	struct timespec began, ended;
	union bpf_attr attr;
	unsigned key, value, count;
	int table, programs[2], lookup, turn;

	if (argc != 6)
		return 2;
	lookup = !strcmp(argv[1], "lookup");
	table = opened(argv[2]);
	count = atoi(argv[3]);
	programs[0] = opened(argv[4]);
	programs[1] = opened(argv[5]);
	if (table < 0 || programs[0] < 0 || programs[1] < 0)
		return 1;
	memset(&attr, 0, sizeof attr);
	attr.map_fd = table;
	attr.key = (unsigned long)&key;
	attr.value = (unsigned long)&value;
	for (turn = 0; turn < 2; turn++) {
		clock_gettime(CLOCK_MONOTONIC, &began);
		for (key = 0; key < count; key++) {
			value = programs[(key + turn) & 1];
			if (bpf(lookup ? BPF_MAP_LOOKUP_ELEM : BPF_MAP_UPDATE_ELEM, &attr) && !lookup)
				return 1;
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &ended);
	printf("%.9f\n", ended.tv_sec - began.tv_sec + (ended.tv_nsec - began.tv_nsec) / 1e9);
	return 0;
}
