/* What tcn.c computes, for one kind of core: it is included once for each, with CORE, the attribute that has a function
   compiled for it, LANES, the floats in its vectors, MOST, the columns that meet the weights at once, and OF(name),
   what a function is called there. */

#define INLINE static inline __attribute__((always_inline)) CORE
#define lanes OF(lanes)
#define masks OF(masks)
#define complexes OF(complexes)

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t masks __attribute__((vector_size(4 * LANES), aligned(4)));
typedef struct {
    lanes real, imaginary;
} complexes;

INLINE lanes OF(load)(const float *from) { return *(const lanes *)from; }
INLINE void OF(store)(float *to, lanes x) { *(lanes *)to = x; }
INLINE lanes OF(positive)(lanes x) { return (lanes)((masks)x & (x > 0.0f)); }

/* --- log-mel frames --- */

/* An FFT of `HALF` complex points that are given in reversed order (Cooley & Tukey 1965). */
INLINE void OF(transform)(complexes *z, const float *turns) {
    for (int half = 1; half < HALF; half *= 2)
        for (int k = 0; k < half; k++) {
            const float cosine = turns[2 * k * (HALF / half)], sine = turns[2 * k * (HALF / half) + 1];
            for (int i = k; i < HALF; i += 2 * half) {
                complexes *a = z + i, *b = z + i + half;
                const lanes real = b->real * cosine - b->imaginary * sine;
                const lanes imaginary = b->real * sine + b->imaginary * cosine;
                b->real = a->real - real, b->imaginary = a->imaginary - imaginary;
                a->real += real, a->imaginary += imaginary;
            }
        }
}

/* Samples to up to LANES frames (frames, MELS), one in each lane. */
INLINE void OF(log_mel_few)(const Network *net, const float *samples, int frames, float *out) {
    complexes z[HALF]; /* a frame as complex numbers: of every two samples one is the real part, one the imaginary */
    lanes power[HALF];
    memset(z, 0, sizeof z);
    for (int n = 0; n < FRAME / 2; n++)
        for (int f = 0; f < frames; f++) {
            const float *pair = samples + f * FRAME_HOP + 2 * n;
            z[reversed(n)].real[f] = pair[0] * net->taper[2 * n];
            z[reversed(n)].imaginary[f] = pair[1] * net->taper[2 * n + 1];
        }
    OF(transform)(z, net->turns);
    for (int k = 1; k < HALF; k++) { /* the spectra of both are in it, and make that of the frame */
        const complexes a = z[k], b = z[HALF - k];
        const float cosine = net->turns[2 * k], sine = net->turns[2 * k + 1];
        const lanes odd_real = a.imaginary + b.imaginary, odd_imaginary = b.real - a.real; /* twice */
        const lanes real = a.real + b.real + odd_real * cosine - odd_imaginary * sine;
        const lanes imaginary = a.imaginary - b.imaginary + odd_real * sine + odd_imaginary * cosine;
        power[k] = (real * real + imaginary * imaginary) * 0.25f;
    }
    for (int m = 0; m < MELS; m++) {
        const float *filter = net->filters + net->begins[m];
        lanes sum = {0};
        for (int64_t i = 0; i < net->begins[m + 1] - net->begins[m]; i++) sum += power[net->lowest[m] + i] * filter[i];
        for (int f = 0; f < frames; f++)
            out[f * MELS + m] = logf(sum[f] + net->floor) * net->gain[m] + net->offset[m];
    }
}

/* Samples (PAST + frames * FRAME_HOP,) to frames (frames, MELS). */
static CORE void OF(log_mel)(const Network *net, const float *samples, int64_t frames, float *out) {
    for (int64_t f = 0; f < frames; f += LANES)
        OF(log_mel_few)(net, samples + f * FRAME_HOP, (int)least(LANES, frames - f), out + f * MELS);
}

/* --- layers --- */

INLINE void OF(mix_few)(const Mix *mix, const int columns, const float *x, int64_t apart, const float *residual,
                        int rectified, float *out) {
    for (int64_t o = 0; o < mix->outputs; o += TILE) {
        const float *weight = mix->weight + o * mix->inputs;
        lanes sum[MOST][TILE / LANES];
        for (int j = 0; j < columns; j++)
            for (int v = 0; v < TILE / LANES; v++) sum[j][v] = OF(load)(mix->bias + o + v * LANES);
        for (int64_t i = 0; i < mix->inputs; i++) {
            lanes w[TILE / LANES];
            for (int v = 0; v < TILE / LANES; v++) w[v] = OF(load)(weight + i * TILE + v * LANES);
            for (int j = 0; j < columns; j++)
                for (int v = 0; v < TILE / LANES; v++) sum[j][v] += w[v] * x[j * apart + i];
        }
        for (int j = 0; j < columns; j++)
            for (int v = 0; v < TILE / LANES; v++) {
                const int64_t at = j * mix->outputs + o + v * LANES;
                const lanes y = residual ? sum[j][v] + OF(load)(residual + at) : sum[j][v];
                OF(store)(out + at, rectified ? OF(positive)(y) : y);
            }
    }
}

/* Columns that begin so many floats apart to (columns, outputs), `residual` added if there is one. */
static CORE void OF(mix)(const Mix *mix, int64_t columns, const float *x, int64_t apart, const float *residual,
                         int rectified, float *out) {
    for (int64_t j = 0; j < columns; j += MOST) {
        const float *from = x + j * apart, *add = residual ? residual + j * mix->outputs : NULL;
        float *to = out + j * mix->outputs;
        switch (least(MOST, columns - j)) { /* a number the compiler knows, so that sums are in registers */
        case 1: OF(mix_few)(mix, 1, from, apart, add, rectified, to); break;
        case 2: OF(mix_few)(mix, 2, from, apart, add, rectified, to); break;
#if MOST > 3
        case 3: OF(mix_few)(mix, 3, from, apart, add, rectified, to); break;
        case 4: OF(mix_few)(mix, 4, from, apart, add, rectified, to); break;
        case 5: OF(mix_few)(mix, 5, from, apart, add, rectified, to); break;
#endif
        default: OF(mix_few)(mix, MOST, from, apart, add, rectified, to);
        }
    }
}

/* Rows (columns + size - 1, channels) to (columns, channels). */
static CORE void OF(along)(const Kernel *kernel, int64_t columns, const float *x, int64_t channels, float *out) {
    for (int64_t j = 0; j < columns; j++)
        for (int64_t c = 0; c < channels; c += LANES) {
            lanes sum = OF(load)(kernel->bias + c);
            for (int64_t k = 0; k < kernel->size; k++)
                sum += OF(load)(x + (j + k) * channels + c) * OF(load)(kernel->weight + k * channels + c);
            OF(store)(out + j * channels + c, sum);
        }
}

/* Columns (COLUMNS, channels) to their mean (channels,). */
static CORE void OF(average)(const float *x, int64_t channels, float *out) {
    for (int64_t c = 0; c < channels; c += LANES) {
        lanes sum = {0};
        for (int64_t j = 0; j < COLUMNS; j++) sum += OF(load)(x + j * channels + c);
        OF(store)(out + c, sum / (float)COLUMNS);
    }
}

/* What an embedding says, to posteriors (labels,). */
static CORE void OF(decide)(const Network *net, const float *embedded, float *scores, float *posteriors) {
    OF(mix)(&net->classifier, 1, embedded, 0, NULL, 0, scores);
    float most = scores[0], sum = 0.0f;
    for (int l = 1; l < net->labels; l++) most = fmaxf(most, scores[l]);
    for (int l = 0; l < net->labels; l++) sum += posteriors[l] = expf(scores[l] - most);
    for (int l = 0; l < net->labels; l++) posteriors[l] /= sum;
}

/* --- the networks --- */

static CORE int OF(stcn)(ARGUMENTS) {
    const int64_t frames = size / FRAME_HOP, columns = frames / STEM_STRIDE, kept = STEM_KERNEL - STEM_STRIDE;
    const int64_t channels = net->stem.outputs, wide = net->wide.outputs, pooled = net->before_last.size;
    int64_t longest = 0;
    for (int b = 0; b < BLOCKS; b++) longest = most(longest, net->depthwise[b].size);
    const int64_t floats = PAST + size + (kept + frames) * MELS + (2 * (longest + columns) + columns) * channels
                           + (pooled + columns + 2) * wide + net->classifier.outputs;
    float *room = malloc((size_t)floats * sizeof(float)), *next = room;
    if (!room) return NO_MEMORY;
    float *heard = take(&next, PAST + size), *mels = take(&next, (kept + frames) * MELS);
    float *x = take(&next, (longest + columns) * channels), *y = take(&next, (longest + columns) * channels);
    float *mixed = take(&next, columns * channels), *under = take(&next, (pooled + columns) * wide);
    float *at_once = take(&next, wide), *embedded = take(&next, wide), *scores = take(&next, net->classifier.outputs);

    for (int64_t n = 0; n < streams; n++) {
        float *state = states + which[n] * stcn_state(net);
        memcpy(heard + PAST, samples + n * size, (size_t)size * sizeof *heard);
        state = go_on(state, heard, PAST, size);
        OF(log_mel)(net, heard, frames, mels + kept * MELS);
        state = go_on(state, mels, kept * MELS, frames * MELS);
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
        for (int64_t h = 0; h < hops; h++, posteriors += net->labels) {
            OF(along)(&net->before_last, 1, under + ends[h] * wide, wide, at_once);
            OF(mix)(&net->last, 1, at_once, 0, NULL, 1, embedded);
            OF(decide)(net, embedded, scores, posteriors);
        }
    }
    free(room);
    return 0;
}

static CORE int OF(dstcn)(ARGUMENTS) {
    const int64_t frames = size / FRAME_HOP, channels = net->stem.outputs, wide = net->wide.outputs;
    const int64_t stem_edge = STEM_KERNEL / 2; /* of zeros before and behind a window */
    int64_t edge = net->before_last.size / 2;
    for (int b = 0; b < BLOCKS; b++) edge = most(edge, net->depthwise[b].size / 2);
    const int64_t floats = PAST + size + (FRAMES + frames) * MELS + (FRAMES + 2 * stem_edge) * MELS
                           + (2 * (COLUMNS + 2 * edge) + COLUMNS) * channels + (2 * COLUMNS + 1) * wide
                           + net->classifier.outputs;
    float *room = calloc((size_t)floats, sizeof(float)), *next = room;
    if (!room) return NO_MEMORY;
    float *heard = take(&next, PAST + size), *mels = take(&next, (FRAMES + frames) * MELS);
    float *window = take(&next, (FRAMES + 2 * stem_edge) * MELS);
    float *x = take(&next, (COLUMNS + 2 * edge) * channels), *y = take(&next, (COLUMNS + 2 * edge) * channels);
    float *mixed = take(&next, COLUMNS * channels), *wider = take(&next, COLUMNS * wide);
    float *widest = take(&next, COLUMNS * wide), *mean = take(&next, wide);
    float *scores = take(&next, net->classifier.outputs);
    const int64_t first = edge * channels;

    for (int64_t n = 0; n < streams; n++) {
        float *state = states + which[n] * dstcn_state(net);
        memcpy(heard + PAST, samples + n * size, (size_t)size * sizeof *heard);
        state = go_on(state, heard, PAST, size);
        OF(log_mel)(net, heard, frames, mels + FRAMES * MELS);
        go_on(state, mels, FRAMES * MELS, frames * MELS);
        for (int64_t h = 0; h < hops; h++, posteriors += net->labels) {
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
            OF(average)(widest, wide, mean);
            OF(decide)(net, mean, scores, posteriors);
        }
    }
    free(room);
    return 0;
}

#undef INLINE
#undef CORE
#undef lanes
#undef masks
#undef complexes
#undef LANES
#undef MOST
#undef OF
