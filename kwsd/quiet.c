/* The powers that quiet.py looks at, out of a ring: numpy needs a dozen calls for them, four times a second. */

#include <stdint.h>

typedef struct {
    const float *ring;          /* (capacity, channels) */
    int64_t capacity, channels;
    int64_t channel;            /* negative: the mean of all */
    int64_t piece, at_once;     /* frames: of a piece, and of which only the mean counts */
} Sound;

/* What Python must have been written for. */
int64_t quiet_interface(void) { return (int64_t)sizeof(Sound); }

/* The mean square of a piece from a frame on, less what a constant has. */
static double power(const Sound *s, int64_t at) {
    const int64_t means = s->piece / s->at_once, one = s->channel >= 0;
    const int64_t first = one ? s->channel : 0, channels = one ? 1 : s->channels;
    const double share = 1.0 / (double)(s->at_once * channels);
    double sum = 0.0, squares = 0.0;
    for (int64_t m = 0; m < means; m++) {
        float mean = 0.0f;
        for (int64_t f = 0; f < s->at_once; f++, at++) {
            if (at == s->capacity) at = 0;
            const float *samples = s->ring + at * s->channels + first;
            for (int64_t c = 0; c < channels; c++) mean += samples[c];
        }
        sum += mean;
        squares += (double)mean * mean;
    }
    const double constant = share * sum / (double)means;
    return share * share * squares / (double)means - constant * constant;
}

/* The powers of so many pieces from a frame on. */
void quiet_powers(const Sound *s, int64_t start, int64_t pieces, double *powers) {
    for (int64_t p = 0; p < pieces; p++) powers[p] = power(s, (start + p * s->piece) % s->capacity);
}
