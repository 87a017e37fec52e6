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

static double frame(const Sound *s, int64_t at) {
    const float *samples = s->ring + at * s->channels;
    if (s->channel >= 0) return samples[s->channel];
    double sum = 0.0;
    for (int64_t c = 0; c < s->channels; c++) sum += samples[c];
    return sum / (double)s->channels;
}

/* The powers of so many pieces from a frame on, mean squares less what a constant has. */
void quiet_powers(const Sound *s, int64_t start, int64_t pieces, double *powers) {
    const int64_t means = s->piece / s->at_once;
    int64_t at = start % s->capacity;
    for (int64_t p = 0; p < pieces; p++) {
        double sum = 0.0, squares = 0.0;
        for (int64_t m = 0; m < means; m++) {
            double mean = 0.0;
            for (int64_t f = 0; f < s->at_once; f++) {
                mean += frame(s, at);
                if (++at == s->capacity) at = 0;
            }
            mean /= (double)s->at_once;
            sum += mean;
            squares += mean * mean;
        }
        powers[p] = squares / (double)means - sum / (double)means * (sum / (double)means);
    }
}
