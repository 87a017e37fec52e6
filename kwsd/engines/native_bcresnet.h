/* BC-ResNet, in native_core.h. What lies over mels and columns is a picture (mels, FRAMES, channels). */

/* Of e, accurate to a few in ten million, as Cephes' expf is (Moshier 1992). */
INLINE lanes OF(exponential)(lanes x) {
    const lanes least = (lanes){0} - 87.0f, most = (lanes){0} + 87.0f; /* beyond, no exponent is left */
    masks out = x < least;
    x = (lanes)(((masks)least & out) | ((masks)x & ~out));
    out = x > most;
    x = (lanes)(((masks)most & out) | ((masks)x & ~out));
    const float rounds = 12582912.0f; /* 1.5 * 2^23, which leaves no room for a fraction */
    const lanes shifted = x * 1.44269504f + rounds, whole = shifted - rounds;
    const lanes r = x - whole * 0.693359375f + whole * 2.12194440e-4f; /* ln 2, in two parts */
    lanes power = r * 1.9875691500e-4f + 1.3981999507e-3f;
    power = power * r + 8.3334519073e-3f;
    power = power * r + 4.1665795894e-2f;
    power = power * r + 1.6666665459e-1f;
    power = power * r + 5.0000001201e-1f;
    power = power * r * r + r + 1.0f;
    return (lanes)((masks)power + ((masks)shifted << 23)); /* of `rounds` all bits are shifted out */
}

/* Frames in `window` (FRAMES + 4, MELS + 4), with an edge of zeros, to a picture half as high. */
static CORE void OF(enter)(const Mix *stem, const float *window, float *patches, float *out) {
    enum { WIDE = MELS + STEM_KERNEL - 1 };
    for (int64_t m = 0; m < MELS / STEM_STRIDE; m++) {
        float *patch = patches;
        for (int64_t f = 0; f < FRAMES; f++)
            for (int64_t k = 0; k < STEM_KERNEL; k++, patch += STEM_KERNEL)
                memcpy(patch, window + (f + k) * WIDE + STEM_STRIDE * m, STEM_KERNEL * sizeof *patch);
        OF(mix)(stem, FRAMES, patches, STEM_KERNEL * STEM_KERNEL, NULL, 1, out + m * FRAMES * stem->outputs);
    }
}

/* A picture of `mels` to one of `mels / stride`, three mels to one; and its sums over mels (FRAMES, channels). */
static CORE void OF(across)(const Broadcast *block, int64_t mels, const float *x, int64_t channels, float *out,
                            float *sums) {
    const int64_t row = FRAMES * channels, after = mels / block->stride;
    memset(sums, 0, (size_t)row * sizeof *sums);
    for (int64_t m = 0; m < after; m++, out += row) {
        const int64_t band = m / (after / BANDS), first = m * block->stride - 1;
        const int64_t from = first < 0, to = least(3, mels - first); /* beyond the edges there are zeros */
        const float *weight = block->across + band * 3 * channels, *bias = block->across_bias + band * channels;
        for (int64_t at = 0; at < row; at += channels)
            for (int64_t c = 0; c < channels; c += LANES) {
                lanes sum = OF(load)(bias + c);
                for (int64_t k = from; k < to; k++)
                    sum += OF(load)(x + (first + k) * row + at + c) * OF(load)(weight + k * channels + c);
                OF(store)(out + at + c, sum);
                OF(store)(sums + at + c, OF(load)(sums + at + c) + sum);
            }
    }
}

/* Sums over mels (LONGEST_DILATION of zeros, FRAMES and as many zeros again, channels) to (FRAMES, channels), activated
   (SiLU). */
static CORE void OF(over_time)(const Broadcast *block, const float *sums, int64_t channels, float *out) {
    const float *first = sums + (LONGEST_DILATION - block->dilation) * channels;
    for (int64_t at = 0; at < FRAMES * channels; at += channels)
        for (int64_t c = 0; c < channels; c += LANES) {
            lanes sum = OF(load)(block->along.bias + c);
            for (int64_t k = 0; k < block->along.size; k++)
                sum += OF(load)(first + at + k * block->dilation * channels + c)
                       * OF(load)(block->along.weight + k * channels + c);
            OF(store)(out + at + c, sum / (OF(exponential)(-sum) + 1.0f));
        }
}

/* Adds to every mel of a picture what is said of its columns (FRAMES, channels), and `residual` if there is one; what
   is below zero becomes zero. */
static CORE void OF(broadcast)(int64_t mels, const float *columns, const float *residual, int64_t channels, float *x) {
    const int64_t row = FRAMES * channels;
    for (int64_t m = 0; m < mels; m++)
        for (int64_t i = 0; i < row; i += LANES) {
            const lanes sum = OF(load)(x + m * row + i) + OF(load)(columns + i);
            OF(store)(x + m * row + i, OF(positive)(residual ? sum + OF(load)(residual + m * row + i) : sum));
        }
}

/* A picture of BANDS mels, all of them and STEM_KERNEL columns to one: (FRAMES, channels). */
static CORE void OF(gather)(const Kernel *kernel, const float *x, int64_t channels, float *out) {
    const int64_t edge = STEM_KERNEL / 2;
    for (int64_t f = 0; f < FRAMES; f++)
        for (int64_t c = 0; c < channels; c += LANES) {
            lanes sum = OF(load)(kernel->bias + c);
            for (int64_t m = 0; m < BANDS; m++)
                for (int64_t k = most(0, edge - f); k < least(STEM_KERNEL, FRAMES + edge - f); k++)
                    sum += OF(load)(x + (m * FRAMES + f + k - edge) * channels + c)
                           * OF(load)(kernel->weight + (m * STEM_KERNEL + k) * channels + c);
            OF(store)(out + f * channels + c, sum);
        }
}

static CORE int OF(bcresnet)(ARGUMENTS) {
    const BcResNet *net = network;
    const int64_t frames = size / FRAME_HOP, edge = STEM_KERNEL / 2, wide = net->wide.outputs;
    int64_t channels = net->stem.outputs;
    for (int b = 0; b < BROADCASTS; b++) channels = most(channels, net->blocks[b].mixed.outputs);
    const int64_t picture = MELS / STEM_STRIDE * FRAMES * channels, padded = FRAMES + 2 * LONGEST_DILATION;
    const int64_t patches = FRAMES * STEM_KERNEL * STEM_KERNEL, edged = (FRAMES + 2 * edge) * (MELS + 2 * edge);
    const int64_t floats = PAST + size + (FRAMES + frames) * MELS + edged + patches + 2 * picture
                           + (padded + 2 * FRAMES) * channels + (FRAMES + 1) * wide + net->common.classifier.outputs;
    float *room = calloc((size_t)floats, sizeof(float)), *next = room;
    if (!room) return NO_MEMORY;
    float *heard = take(&next, PAST + size), *mels = take(&next, (FRAMES + frames) * MELS);
    float *window = take(&next, edged), *patch = take(&next, patches);
    float *x = take(&next, picture), *y = take(&next, picture), *sums = take(&next, padded * channels);
    float *activated = take(&next, FRAMES * channels), *columns = take(&next, FRAMES * channels);
    float *wider = take(&next, FRAMES * wide), *mean = take(&next, wide);
    float *scores = take(&next, net->common.classifier.outputs);

    for (int64_t n = 0; n < streams; n++) {
        OF(hear)(&net->common, samples + n * size, size, FRAMES, states + which[n] * window_state(), heard, mels);
        for (int64_t h = 0; h < hops; h++, posteriors += net->common.labels) {
            const float *from = mels + (ends[h] + 1) * MELS;
            for (int64_t f = 0; f < FRAMES; f++)
                memcpy(window + (f + edge) * (MELS + 2 * edge) + edge, from + f * MELS, MELS * sizeof *window);
            OF(enter)(&net->stem, window, patch, x);
            int64_t high = MELS / STEM_STRIDE, before = net->stem.outputs;
            for (int b = 0; b < BROADCASTS; b++) {
                const Broadcast *block = &net->blocks[b];
                const int64_t now = block->mixed.outputs;
                const float *residual = x;
                if (block->enter.weight) {
                    OF(mix)(&block->enter, high * FRAMES, x, before, NULL, 1, y);
                    float *used = x;
                    x = y, y = used, residual = NULL;
                }
                float *middle = sums + LONGEST_DILATION * now;
                memset(sums, 0, (size_t)(LONGEST_DILATION * now) * sizeof *sums);
                memset(middle + FRAMES * now, 0, (size_t)(LONGEST_DILATION * now) * sizeof *sums);
                OF(across)(block, high, x, now, y, middle);
                OF(over_time)(block, sums, now, activated);
                OF(mix)(&block->mixed, FRAMES, activated, now, NULL, 0, columns);
                high /= block->stride;
                OF(broadcast)(high, columns, residual, now, y);
                float *used = x;
                x = y, y = used, before = now;
            }
            OF(gather)(&net->last, x, before, columns);
            OF(mix)(&net->wide, FRAMES, columns, before, NULL, 1, wider);
            OF(average)(FRAMES, wider, wide, mean);
            OF(decide)(&net->common, mean, scores, posteriors);
        }
    }
    free(room);
    return 0;
}
