// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0
//
// Loads for the benchmarks: what copies may disturb. Not used outside benches.

typedef unsigned int u32;
typedef unsigned long long u64;

// Bound by arithmetic: every thread runs fused multiply-adds on registers.
extern "C" __global__ void pegaflow_load_fma(float* memory, u64 bytes, u32 rounds) {
    float a = threadIdx.x, b = 1.0001f, c[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) c[i] = i + blockIdx.x;
    for (u32 r = 0; r < rounds; ++r) {
#pragma unroll
        for (int i = 0; i < 8; ++i) c[i] = c[i] * b + a;
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += c[i];
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (sum == 12345.678f && at < bytes / 4) memory[at] = sum;
}

// Bound by device memory: reads one half, adds, writes the other.
extern "C" __global__ void pegaflow_load_hbm(float4* memory, u64 bytes, u32 rounds) {
    u64 half = bytes / 32;
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u32 r = 0; r < rounds; ++r) {
        for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < half; i += step) {
            float4 v = memory[i];
            v.x += 1; v.y += 1; v.z += 1; v.w += 1;
            memory[half + i] = v;
        }
    }
}
