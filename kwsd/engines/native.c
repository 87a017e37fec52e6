/* S-TCN, DS-TCN and BC-ResNet on the CPU: the next samples and a stream's state to posteriors and the state after them.
   The networks are those of networks/stcn.py, dstcn.py and bcresnet.py, their normalisations folded into the weights;
   layout.py says how the weights lie, native_core.h, native_tcn.h and native_bcresnet.h what becomes of them.

   Three things make it quick. It is small enough to be back in the caches soon after a sleep. Log-mel frames are
   computed several at a time, one in each lane of a vector, so that the FFT is the textbook's, of vectors. And the
   weights of a layer lie in the order in which they are read, and meet several columns whenever they are. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    FRAME = 480, FRAME_HOP = 160, FFT = 512, MELS = 40, /* as in mel.py */
    STEM_KERNEL = 5, STEM_STRIDE = 2, BLOCKS = 6,       /* as in networks/stcn.py and dstcn.py */
    BROADCASTS = 12, BANDS = 5, LONGEST_DILATION = 8,   /* as in networks/bcresnet.py */
    FRAMES = 98,                                        /* of a window */
    COLUMNS = 49,                                       /* of a window of DS-TCN */
    PAST = FRAME - FRAME_HOP,                           /* samples that the next frame shares with this one */
    HALF = FFT / 2,
    TILE = 16,     /* outputs whose weights lie side by side, as in layout.py */
    INTERFACE = 2, /* one more with every change of what Python sees */
};
enum { NO_MEMORY = -1, NO_STATE = -2 };

typedef struct { /* the same mix of channels in every column */
    int64_t inputs, outputs; /* a multiple of TILE each, but for the inputs of a stem */
    const float *weight;     /* (outputs / TILE, inputs, TILE) */
    const float *bias;       /* (outputs,) */
} Mix;

typedef struct { /* one kernel per channel, over time */
    int64_t size;        /* columns */
    const float *weight; /* (size, channels) */
    const float *bias;   /* (channels,) */
} Kernel;

typedef struct { /* what all networks begin and end with */
    const float *taper;    /* (FRAME,) */
    const float *turns;    /* (HALF, 2): cosine and minus sine of every angle of the FFT */
    const int64_t *begins; /* (MELS + 1,): where in `filters` each begins */
    const int64_t *lowest; /* (MELS,): the bin it begins with */
    const float *filters;  /* one after the other, without their zeros */
    const float *gain;     /* (MELS,) of log-mel frames */
    const float *offset;   /* (MELS,) */
    float floor;           /* added before the logarithm */
    int32_t labels;
    Mix classifier;
} Common;

typedef struct {
    Common common;
    Mix stem, pointwise[BLOCKS], wide, last;
    Kernel depthwise[BLOCKS], before_last; /* S-TCN: over all columns that are left; DS-TCN: before `wide` */
} Tcn;

typedef struct { /* a block of BC-ResNet */
    int64_t stride, dilation;
    Mix enter;                /* of a transition; without weights in any other */
    const float *across;      /* (BANDS, 3, channels): kernels over mels, of which each band has its own */
    const float *across_bias; /* (BANDS, channels) */
    Kernel along;             /* three columns, `dilation` apart, of the sum over mels */
    Mix mixed;
} Broadcast;

typedef struct {
    Common common;
    Mix stem, wide;
    Broadcast blocks[BROADCASTS];
    Kernel last; /* (BANDS mels, STEM_KERNEL columns) */
} BcResNet;

/* The arguments of both networks: the next samples (streams, size) of the streams whose states are the rows `which`
   (streams,) of states (rows, state); and which of the network's steps in those samples are the last of a hop (hops,).
   To posteriors (streams, hops, labels). Returns 0, or what was wrong. */
#define ARGUMENTS \
    const void *network, const float *samples, int64_t size, int64_t streams, const int64_t *which, float *states, \
        const int64_t *ends, int64_t hops, float *posteriors

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

/* n, of `HALF`, with its bits in reverse. */
static inline int reversed(int n) {
    int m = 0;
    for (int bit = 1; bit < HALF; bit *= 2) m = 2 * m + (n & bit ? 1 : 0);
    return m;
}

/* Room for one array, behind those before it. */
static inline float *take(float **next, int64_t floats) {
    float *taken = *next;
    *next += floats;
    return taken;
}

/* `rows` is (kept + added,): puts what a state holds in front of what was added, and the last of both into the state.
   Returns where the state goes on. */
static inline float *go_on(float *state, float *rows, int64_t kept, int64_t added) {
    memcpy(rows, state, (size_t)kept * sizeof *rows);
    memcpy(state, rows + added, (size_t)kept * sizeof *rows);
    return state + kept;
}

/* Floats of a stream's state. */
int64_t stcn_state(const void *network) {
    const Tcn *net = network;
    int64_t floats = PAST + (STEM_KERNEL - STEM_STRIDE) * MELS + (net->before_last.size - 1) * net->wide.outputs;
    for (int b = 0; b < BLOCKS; b++) floats += (net->depthwise[b].size - 1) * net->stem.outputs;
    return floats;
}

static int64_t window_state(void) { return PAST + FRAMES * MELS; }

int64_t dstcn_state(const void *network) {
    (void)network;
    return window_state();
}

int64_t bcresnet_state(const void *network) {
    (void)network;
    return window_state();
}

/* As many columns meet the weights at once as have their sums in the core's registers. */
#ifdef __x86_64__
#define CORE __attribute__((target("avx512f")))
#define LANES 16
#define MOST 6
#define OF(name) name##_16
#include "native_core.h"
#define CORE __attribute__((target("avx2,fma")))
#define LANES 8
#define MOST 6
#define OF(name) name##_8
#include "native_core.h"
#define CORE
#define LANES 4
#define MOST 3
#define OF(name) name##_4
#include "native_core.h"
#else
#define CORE
#define LANES 4
#define MOST 6
#define OF(name) name##_4
#include "native_core.h"
#endif

static int chosen = 4; /* floats in a vector */

/* Takes vectors of so many floats at most, or of as many as the core has. Returns how many it takes. */
int64_t native_lanes(int64_t at_most) {
    int lanes = 4;
#ifdef __x86_64__
    if (at_most >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) lanes = 8;
    if (at_most >= 16 && __builtin_cpu_supports("avx512f")) lanes = 16;
#else
    (void)at_most;
#endif
    return chosen = lanes; /* at once: another thread may be in the midst of it */
}

/* What Python must have been written for. */
int64_t native_interface(void) { return INTERFACE * 65536 + (int64_t)(sizeof(Tcn) + sizeof(BcResNet)); }

static int are_there(const int64_t *which, int64_t streams, int64_t rows) {
    for (int64_t n = 0; n < streams; n++)
        if (which[n] < 0 || which[n] >= rows) return 0;
    return 1;
}

#ifdef __x86_64__
#define BY_CORE(name, ...) \
    (chosen == 16 ? name##_16(__VA_ARGS__) : chosen == 8 ? name##_8(__VA_ARGS__) : name##_4(__VA_ARGS__))
#else
#define BY_CORE(name, ...) name##_4(__VA_ARGS__)
#endif
#define ADVANCE(name) \
    int name##_advance(ARGUMENTS, int64_t rows) { \
        if (!are_there(which, streams, rows)) return NO_STATE; \
        return BY_CORE(name, network, samples, size, streams, which, states, ends, hops, posteriors); \
    }
ADVANCE(stcn)
ADVANCE(dstcn)
ADVANCE(bcresnet)
