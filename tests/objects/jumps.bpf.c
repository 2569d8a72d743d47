/* Every way in which a compiler lets a program find the index of a tail call. */
#include "bpf.h"

jump_table(first, 8);
jump_table(second, 16);
struct {
    number(type, ARRAY);
    number(max_entries, 1);
    type(key, u32);
    type(value, u32);
} settings SEC(".maps");

const volatile u32 constant_index = 4;
const volatile u32 is_enabled = 0;
u32 variable_index;

SEC("xdp") int constant(struct xdp_md *context) { tail_call(context, &first, 3); return 0; }

SEC("xdp") int two_arrays(struct xdp_md *context) {
    tail_call(context, &first, 1);
    tail_call(context, &second, 2);
    return 0;
}

SEC("xdp") int switched(struct xdp_md *context) {
    u32 index;
    switch (context->rx_queue_index) {
    case 0: index = 5; break;
    case 1: index = 2; break;
    case 7: index = 6; break;
    default: index = 0;
    }
    tail_call(context, &first, index);
    return 0;
}

SEC("xdp") int merged(struct xdp_md *context) {
    switch (context->rx_queue_index) {
    case 0: tail_call(context, &first, 5); break;
    case 1: tail_call(context, &second, 6); break;
    }
    return 0;
}

SEC("xdp") int masked(struct xdp_md *context) { tail_call(context, &first, context->rx_queue_index & 3); return 0; }

SEC("xdp") int compared(struct xdp_md *context) {
    u64 index = context->rx_queue_index;
    if (index > 2)
        return 0;
    tail_call(context, &first, index);
    return 0;
}

SEC("xdp") int from_packet(struct xdp_md *context) {
    u8 *data = (void *)(long)context->data;
    if (data + 1 > (u8 *)(long)context->data_end)
        return 0;
    tail_call(context, &first, *data);
    return 0;
}

SEC("xdp") int from_map(struct xdp_md *context) {
    u32 key = 0, *value = lookup(&settings, &key);
    if (value)
        tail_call(context, &first, *value);
    return 0;
}

SEC("xdp") int from_constant(struct xdp_md *context) { tail_call(context, &first, constant_index); return 0; }

SEC("xdp") int from_variable(struct xdp_md *context) { tail_call(context, &first, variable_index); return 0; }

static noinline int function(struct xdp_md *context, u32 index) { tail_call(context, &second, index); return 1; }

SEC("xdp") int in_function(struct xdp_md *context) { return function(context, 4); }

SEC("xdp") int after_calls(struct xdp_md *context) {
    u32 key = 0, index = context->rx_queue_index ? 1 : 7;
    u32 *value = lookup(&settings, &key);
    if (value && *value)
        *value = 1;
    tail_call(context, &second, index);
    return 0;
}

SEC("xdp") int looped(struct xdp_md *context) {
    for (u32 index = 0; index < 4; index++)
        tail_call(context, &first, index);
    return 0;
}

SEC("xdp") int beyond_end(struct xdp_md *context) { tail_call(context, &first, 200); return 0; }

SEC("xdp") int never(struct xdp_md *context) {
    if (is_enabled)
        tail_call(context, &first, 1);
    return 2;
}

SEC("xdp") int none(struct xdp_md *context) { return 2; }
