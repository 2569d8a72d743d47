// The program that packets come to: it jumps to entry 0 of `root`.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 4);
    __type(key, __u32);
    __type(value, __u32);
} root SEC(".maps");

__u64 fell_through;

SEC("xdp") int start(struct xdp_md *ctx)
{
    bpf_tail_call_static(ctx, &root, 0);
    __sync_fetch_and_add(&fell_through, 1);
    return XDP_ABORTED;
}

char LICENSE[] SEC("license") = "GPL";
