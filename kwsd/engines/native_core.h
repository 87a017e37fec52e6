/* What native.c computes, for one kind of core: it is included once for each, with CORE, the attribute that has a
   function compiled for it, LANES, the floats in its vectors, MOST, the columns that meet the weights at once, and
   OF(name), what a function is called there. */

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
INLINE void OF(log_mel_few)(const Common *net, const float *samples, int frames, float *out) {
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
static CORE void OF(log_mel)(const Common *net, const float *samples, int64_t frames, float *out) {
    for (int64_t f = 0; f < frames; f += LANES)
        OF(log_mel_few)(net, samples + f * FRAME_HOP, (int)least(LANES, frames - f), out + f * MELS);
}

/* The next samples (size,) and a stream's state to frames (kept + size / FRAME_HOP, MELS), of which `kept` are from
   before. Returns where the state goes on. */
static CORE float *OF(hear)(const Common *net, const float *samples, int64_t size, int64_t kept, float *state,
                            float *heard, float *mels) {
    const int64_t frames = size / FRAME_HOP;
    memcpy(heard + PAST, samples, (size_t)size * sizeof *heard);
    state = go_on(state, heard, PAST, size);
    OF(log_mel)(net, heard, frames, mels + kept * MELS);
    return go_on(state, mels, kept * MELS, frames * MELS);
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

/* Columns (columns, channels) to their mean (channels,). */
static CORE void OF(average)(int64_t columns, const float *x, int64_t channels, float *out) {
    for (int64_t c = 0; c < channels; c += LANES) {
        lanes sum = {0};
        for (int64_t j = 0; j < columns; j++) sum += OF(load)(x + j * channels + c);
        OF(store)(out + c, sum / (float)columns);
    }
}

/* What an embedding says, to posteriors (labels,). */
static CORE void OF(decide)(const Common *net, const float *embedded, float *scores, float *posteriors) {
    OF(mix)(&net->classifier, 1, embedded, 0, NULL, 0, scores);
    float most = scores[0], sum = 0.0f;
    for (int l = 1; l < net->labels; l++) most = fmaxf(most, scores[l]);
    for (int l = 0; l < net->labels; l++) sum += posteriors[l] = expf(scores[l] - most);
    for (int l = 0; l < net->labels; l++) posteriors[l] /= sum;
}

/* --- the networks --- */

#include "native_bcresnet.h"
#include "native_tcn.h"

#undef INLINE
#undef CORE
#undef lanes
#undef masks
#undef complexes
#undef LANES
#undef MOST
#undef OF
