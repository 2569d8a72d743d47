/* The commands of bpf(2) on one element of a map whose keys and values are u32. */
#include <errno.h>
#include <linux/bpf.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* How often a command was called, and the seconds that it took: in all, and the longest time. */
typedef struct {
    unsigned long count;
    double total, longest;
} Times;

/* As time.perf_counter() of Python: seconds. */
static inline double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* Returns 0, or -1 with errno. `value` is read or written; NULL: the command takes none. The kernel demands that all
 * behind the last field of a command is zero (CHECK_ATTR in kernel/bpf/syscall.c). */
static inline long bpf_element(int command, int fd, uint32_t key, uint32_t *value, uint64_t flags)
{
    union bpf_attr attr;

    memset(&attr, 0, sizeof attr);
    attr.map_fd = fd;
    attr.key = (uintptr_t)&key;
    attr.value = (uintptr_t)value;
    attr.flags = flags;
    return syscall(SYS_bpf, command, &attr, offsetof(union bpf_attr, flags) + sizeof attr.flags);
}

/* The same without flags. The time that it takes is added to `times`. */
static inline long timed_bpf_element(Times *times, int command, int fd, uint32_t key, uint32_t *value)
{
    double began = now(), seconds;
    long result = bpf_element(command, fd, key, value, 0);
    int number = errno;

    seconds = now() - began;
    times->count++;
    times->total += seconds;
    times->longest = seconds > times->longest ? seconds : times->longest;
    errno = number;
    return result;
}
