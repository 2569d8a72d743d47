/* A parser: `entry` jumps by the first byte of the packet. `parse_ip` jumps to an entry that is a hole. */
#include "bpf.h"

int parse_ip(struct xdp_md *context);
int parse_tcp(struct xdp_md *context);
int drop(struct xdp_md *context);
filled_jump_table(table, 16, struct xdp_md, [1] = &parse_ip, [2] = &parse_tcp, [3] = &drop);

SEC("xdp") int entry(struct xdp_md *context) {
    u8 *data = (void *)(long)context->data;
    if (data + 1 > (u8 *)(long)context->data_end)
        return 0;
    tail_call(context, &table, *data);
    return 0;
}

SEC("xdp") int parse_ip(struct xdp_md *context) {
    tail_call(context, &table, 9);
    tail_call(context, &table, 2);
    return 0;
}

SEC("xdp") int parse_tcp(struct xdp_md *context) { return 2; }

SEC("xdp") int drop(struct xdp_md *context) { return 1; }
