// A field that no kernel's structure has: CO-RE finds no place for it.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct net_device___none {
    int no_such_field;
} __attribute__((preserve_access_index));

SEC("xdp") int p(struct xdp_md *ctx)
{
    struct net_device___none *device = (void *)(long)ctx;
    return BPF_CORE_READ(device, no_such_field);
}

char LICENSE[] SEC("license") = "GPL";
