/* S-TCN and DS-TCN, in native_core.h. */

static CORE int OF(stcn)(ARGUMENTS) {
    const Tcn *net = network;
    const int64_t frames = size / FRAME_HOP, columns = frames / STEM_STRIDE, kept = STEM_KERNEL - STEM_STRIDE;
    const int64_t channels = net->stem.outputs, wide = net->wide.outputs, pooled = net->before_last.size;
    int64_t longest = 0;
    for (int b = 0; b < BLOCKS; b++) longest = most(longest, net->depthwise[b].size);
    const int64_t floats = PAST + size + (kept + frames) * MELS + (2 * (longest + columns) + columns) * channels
                           + (pooled + columns + 2) * wide + net->common.classifier.outputs;
    float *room = malloc((size_t)floats * sizeof(float)), *next = room;
    if (!room) return NO_MEMORY;
    float *heard = take(&next, PAST + size), *mels = take(&next, (kept + frames) * MELS);
    float *x = take(&next, (longest + columns) * channels), *y = take(&next, (longest + columns) * channels);
    float *mixed = take(&next, columns * channels), *under = take(&next, (pooled + columns) * wide);
    float *at_once = take(&next, wide), *embedded = take(&next, wide);
    float *scores = take(&next, net->common.classifier.outputs);

    for (int64_t n = 0; n < streams; n++) {
        float *state = states + which[n] * stcn_state(net);
        state = OF(hear)(&net->common, samples + n * size, size, kept, state, heard, mels);
        int64_t edge = net->depthwise[0].size - 1; /* columns before the new ones */
        OF(mix)(&net->stem, columns, mels, STEM_STRIDE * MELS, NULL, 1, x + edge * channels);
        for (int b = 0; b < BLOCKS; b++) {
            state = go_on(state, x, edge * channels, columns * channels);
            OF(along)(&net->depthwise[b], columns, x, channels, mixed);
            const int64_t next_edge = b + 1 < BLOCKS ? net->depthwise[b + 1].size - 1 : 0;
            const float *residual = x + edge / 2 * channels;
            OF(mix)(&net->pointwise[b], columns, mixed, channels, residual, 1, y + next_edge * channels);
            float *used = x;
            x = y, y = used, edge = next_edge;
        }
        OF(mix)(&net->wide, columns, x, channels, NULL, 1, under + (pooled - 1) * wide);
        go_on(state, under, (pooled - 1) * wide, columns * wide);
        for (int64_t h = 0; h < hops; h++, posteriors += net->common.labels) {
            OF(along)(&net->before_last, 1, under + ends[h] * wide, wide, at_once);
            OF(mix)(&net->last, 1, at_once, 0, NULL, 1, embedded);
            OF(decide)(&net->common, embedded, scores, posteriors);
        }
    }
    free(room);
    return 0;
}

static CORE int OF(dstcn)(ARGUMENTS) {
    const Tcn *net = network;
    const int64_t frames = size / FRAME_HOP, channels = net->stem.outputs, wide = net->wide.outputs;
    const int64_t stem_edge = STEM_KERNEL / 2; /* of zeros before and behind a window */
    int64_t edge = net->before_last.size / 2;
    for (int b = 0; b < BLOCKS; b++) edge = most(edge, net->depthwise[b].size / 2);
    const int64_t floats = PAST + size + (FRAMES + frames) * MELS + (FRAMES + 2 * stem_edge) * MELS
                           + (2 * (COLUMNS + 2 * edge) + COLUMNS) * channels + (2 * COLUMNS + 1) * wide
                           + net->common.classifier.outputs;
    float *room = calloc((size_t)floats, sizeof(float)), *next = room;
    if (!room) return NO_MEMORY;
    float *heard = take(&next, PAST + size), *mels = take(&next, (FRAMES + frames) * MELS);
    float *window = take(&next, (FRAMES + 2 * stem_edge) * MELS);
    float *x = take(&next, (COLUMNS + 2 * edge) * channels), *y = take(&next, (COLUMNS + 2 * edge) * channels);
    float *mixed = take(&next, COLUMNS * channels), *wider = take(&next, COLUMNS * wide);
    float *widest = take(&next, COLUMNS * wide), *mean = take(&next, wide);
    float *scores = take(&next, net->common.classifier.outputs);
    const int64_t first = edge * channels;

    for (int64_t n = 0; n < streams; n++) {
        OF(hear)(&net->common, samples + n * size, size, FRAMES, states + which[n] * window_state(), heard, mels);
        for (int64_t h = 0; h < hops; h++, posteriors += net->common.labels) {
            memcpy(window + stem_edge * MELS, mels + (ends[h] + 1) * MELS, FRAMES * MELS * sizeof *window);
            OF(mix)(&net->stem, COLUMNS, window, STEM_STRIDE * MELS, NULL, 1, x + first);
            for (int b = 0; b < BLOCKS; b++) {
                const int64_t before = (edge - net->depthwise[b].size / 2) * channels;
                OF(along)(&net->depthwise[b], COLUMNS, x + before, channels, mixed);
                OF(mix)(&net->pointwise[b], COLUMNS, mixed, channels, x + first, 1, y + first);
                float *used = x;
                x = y, y = used;
            }
            OF(along)(&net->before_last, COLUMNS, x + (edge - net->before_last.size / 2) * channels, channels, mixed);
            OF(mix)(&net->wide, COLUMNS, mixed, channels, NULL, 1, wider);
            OF(mix)(&net->last, COLUMNS, wider, wide, NULL, 1, widest);
            OF(average)(COLUMNS, widest, wide, mean);
            OF(decide)(&net->common, mean, scores, posteriors);
        }
    }
    free(room);
    return 0;
}
