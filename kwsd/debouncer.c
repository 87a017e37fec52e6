/* The rules of debouncer.py, window by window: the same decisions to the last bit (tests/test_debouncer.py asks both).
   numpy needs some thirty calls for a window in which somebody speaks, and after a sleep each of them comes from main
   memory; this is in the caches at once. The names are those of debouncer.py, which says why. */

#include <stdint.h>
#include <string.h>

typedef struct {
    int64_t streams, labels, keywords, smoothing, lookback, hop;
    int64_t unknown;              /* the label of other speech; negative: there is none */
    int64_t wary_hops, word_hops; /* looked back on; what stirred in the last of them was the word */
    int64_t unrest;               /* hops that may stir; where more do, scores must reach the wary threshold */
    float stirring, other_speech; /* posteriors from which on it is that */
    float wary_threshold;
    const int64_t *columns;       /* (keywords,): their labels */
    const float *threshold, *release, *low, *near, *margin;  /* (keywords,) */
    const int64_t *min_hits, *refractory, *isolation_speech; /* (keywords,) */
    float *recent;                                           /* (streams, smoothing, labels) */
    uint8_t *speech, *stirred;                               /* (streams, lookback), (streams, wary_hops) */
    int64_t *count, *last_end;                               /* (streams,) */
    uint8_t *stirring_now, *unsettled;                       /* (streams,) */
    int64_t *hits, *fired_at;                                /* (streams, keywords) */
    uint8_t *armed;                                          /* (streams, keywords) */
    float *smoothed;                                         /* (labels,): room for one mean */
} Debouncer;

typedef struct {
    int64_t row, keyword, runner_up; /* a window, a keyword, a label */
    float score, threshold, runner_up_score;
} Fired;

/* What Python must have been written for. */
int64_t debouncer_interface(void) { return (int64_t)(65536 * sizeof(Fired) + sizeof(Debouncer)); }

/* The window's posteriors and the mean of the last ones: zero until there are enough of them. */
static void smooth(const Debouncer *d, int64_t stream, const float *posteriors) {
    float *recent = d->recent + stream * d->smoothing * d->labels;
    memcpy(recent + d->count[stream] % d->smoothing * d->labels, posteriors, (size_t)d->labels * sizeof *recent);
    d->count[stream]++;
    for (int64_t l = 0; l < d->labels; l++) {
        float sum = recent[l];
        for (int64_t w = 1; w < d->smoothing; w++) sum += recent[w * d->labels + l];
        d->smoothed[l] = d->count[stream] < d->smoothing ? 0.0f : sum / (float)d->smoothing;
    }
}

/* The label with the best mean of all but one; the first of those that are as good. What is no number is better than
   any, as for numpy: nothing is ahead of it. */
static int64_t best_but(const Debouncer *d, int64_t one) {
    int64_t best = one == 0;
    for (int64_t l = best + 1; l < d->labels; l++)
        if (l != one && !(d->smoothed[l] <= d->smoothed[best]) && d->smoothed[best] == d->smoothed[best]) best = l;
    return best;
}

static int is_isolated(const Debouncer *d, int64_t stream, int64_t keyword) {
    int64_t speech = 0;
    for (int64_t h = 0; h < d->lookback; h++) speech += d->speech[stream * d->lookback + h];
    return d->isolation_speech[keyword] < 0 || speech * d->hop <= d->isolation_speech[keyword];
}

/* The least threshold of now. */
static float least_needed(const Debouncer *d, int64_t stream) {
    int64_t stirred = 0;
    for (int64_t h = 0; h < d->wary_hops; h++) stirred += d->stirred[stream * d->wary_hops + h];
    return stirred > d->unrest ? d->wary_threshold : 0.0f;
}

/* What stirred until now was a word. */
static void forget_stirring(const Debouncer *d, int64_t stream) {
    for (int64_t back = 0; back < d->word_hops; back++) {
        const int64_t hop = (d->count[stream] - back) % d->wary_hops;
        d->stirred[stream * d->wary_hops + (hop < 0 ? hop + d->wary_hops : hop)] = 0;
    }
}

/* The rules for one keyword of a stream: whether it fires. */
static int judge(const Debouncer *d, int64_t stream, int64_t end, int64_t keyword, float needed) {
    const float score = d->smoothed[d->columns[keyword]];
    const int64_t at = stream * d->keywords + keyword;
    const int known = d->count[stream] >= d->smoothing;
    const int ahead = known && score >= needed
                      && score >= d->smoothed[best_but(d, d->columns[keyword])] + d->margin[keyword];
    d->hits[at] = ahead ? d->hits[at] + 1 : 0;
    const int fires = d->hits[at] >= d->min_hits[keyword] && is_isolated(d, stream, keyword) && d->armed[at];
    if (fires) {
        d->armed[at] = 0;
        d->fired_at[at] = end;
    }
    if (score < d->release[keyword] && known && end - d->fired_at[at] >= d->refractory[keyword]) d->armed[at] = 1;
    return fires;
}

/* Whether in any stream the next window may decide something, or nothing was heard yet. */
int64_t debouncer_stirs(const Debouncer *d) {
    int heard = 0;
    for (int64_t s = 0; s < d->streams; s++) {
        if (d->stirring_now[s]) return 1;
        heard |= d->count[s] != 0;
    }
    return !heard;
}

enum { NO_STREAM = -1 };

/* Windows (n,) of streams, with posteriors (n, labels), in time order within a stream. Returns how many keywords fired,
   at most n * keywords, or what is wrong. */
int64_t debouncer_step(const Debouncer *d, int64_t n, const int64_t *streams, const int64_t *ends,
                       const float *posteriors, Fired *fired) {
    int64_t count = 0;
    for (int64_t row = 0; row < n; row++, posteriors += d->labels) {
        const int64_t stream = streams[row], end = ends[row], first = stream * d->keywords;
        if (stream < 0 || stream >= d->streams) return NO_STREAM;
        if (end - d->last_end[stream] != d->hop) { /* a gap: what was heard before it says nothing */
            d->count[stream] = 0;
            memset(d->hits + first, 0, (size_t)d->keywords * sizeof *d->hits);
            memset(d->speech + stream * d->lookback, 0, (size_t)d->lookback);
            memset(d->stirred + stream * d->wary_hops, 0, (size_t)d->wary_hops);
        }
        d->last_end[stream] = end;
        smooth(d, stream, posteriors);
        if (d->unknown >= 0)
            d->speech[stream * d->lookback + d->count[stream] % d->lookback] = posteriors[d->unknown] > d->other_speech;
        int awake = d->unsettled[stream];
        for (int64_t k = 0; k < d->keywords; k++) awake |= d->smoothed[d->columns[k]] >= d->low[k];
        if (awake) {
            int unsettled = 0;
            const float least = least_needed(d, stream);
            for (int64_t k = 0; k < d->keywords; k++) {
                const float needed = d->threshold[k] > least ? d->threshold[k] : least;
                if (judge(d, stream, end, k, needed)) {
                    const int64_t rival = best_but(d, d->columns[k]);
                    fired[count++] = (Fired){row, k, rival, d->smoothed[d->columns[k]], needed, d->smoothed[rival]};
                }
                unsettled |= !d->armed[first + k] || d->hits[first + k];
            }
            d->unsettled[stream] = (uint8_t)unsettled;
        }
        int stirs = 0, is_word = 0;
        for (int64_t k = 0; k < d->keywords; k++) {
            const float score = d->smoothed[d->columns[k]];
            stirs |= posteriors[d->columns[k]] >= d->stirring && (d->armed[first + k] || score < d->release[k]);
            is_word |= score >= d->near[k];
        }
        d->stirring_now[stream] = (uint8_t)stirs;
        d->stirred[stream * d->wary_hops + d->count[stream] % d->wary_hops] = (uint8_t)stirs;
        if (is_word) forget_stirring(d, stream);
    }
    return count;
}
