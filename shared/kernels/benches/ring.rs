//! What products of a ring take against those of f32: the crate's own convolution, and the matrix product of the same
//! shape by itself. In turn, on this machine, the best of some rounds of each.
//!
//! `cargo bench -p lacuna-kernels --bench ring`; `RAYON_NUM_THREADS=1` for one thread.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use gemm::Parallelism;
use lacuna_kernels::allocator::keep_freed_pages;
use lacuna_kernels::conv::{Sizes, conv2d};
use lacuna_kernels::ring;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 15;

/// The best time of each, in milliseconds.
fn best<const N: usize>(mut work: [Box<dyn FnMut() + '_>; N]) -> [f64; N] {
    let mut best = [f64::INFINITY; N];
    for _ in 0..ROUNDS {
        for (best, work) in best.iter_mut().zip(&mut work) {
            let start = Instant::now();
            work();
            *best = best.min(1e3 * start.elapsed().as_secs_f64());
        }
    }
    best
}

/// `[m, k]` by `[k, n]`.
fn product([m, n, k]: [usize; 3], a: &[f32], b: &[f32], y: &mut [f32]) {
    assert!(a.len() == m * k && b.len() == k * n && y.len() == m * n);
    let (k_, n_) = (k as isize, n as isize);
    // SAFETY: the slices are as long as the sizes and strides say.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            n_,
            false,
            a.as_ptr(),
            1,
            k_,
            b.as_ptr(),
            1,
            n_,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

fn main() {
    // As workers do.
    keep_freed_pages();
    println!("milliseconds, and the ring's of each f32's");
    for (channels, size, batch) in [
        (320, 64, 1),
        (320, 64, 2),
        (640, 32, 1),
        (640, 32, 2),
        (1280, 16, 1),
        (1280, 16, 2),
        (1280, 8, 1),
        (1280, 8, 2),
    ] {
        let sizes = Sizes {
            batch,
            c_in: channels,
            c_out: channels,
            size: [size; 2],
            kernel: 3,
            stride: 1,
            padding: [1, 1],
            odd: false,
        };
        let [m, n, k] = [channels, batch * size * size, channels * 9];
        let words: Vec<i32> = (0..batch * channels * size * size)
            .map(|i| (i as i32).wrapping_mul(0x9e37_79b9_u32 as i32))
            .collect();
        let rows: Vec<i16> = (0..m * k).map(|i| (i * 40_503 % 65_521) as i16).collect();
        let start = Instant::now();
        let packed = ring::Weights::new(&rows, channels, 3);
        let whole = 1e3 * start.elapsed().as_secs_f64();
        let small: Vec<i16> = rows.iter().map(|row| row / 9).collect();
        let start = Instant::now();
        let of_bits = ring::Weights::of_bits(&small, sizes, 26);
        let transformed = 1e3 * start.elapsed().as_secs_f64();
        let x: Vec<f32> = words.iter().map(|word| *word as f32 * 1e-9).collect();
        let weight: Vec<f32> = rows.iter().map(|row| f32::from(*row) * 1e-5).collect();
        let bias = vec![0.0; channels];
        let patches: Vec<f32> = (0..k * n).map(|i| x[i % x.len()]).collect();
        let mut y = vec![0.0; m * n];
        let [of_ring, few_bits, convolution, matrix] = best([
            Box::new(|| drop(black_box(ring::conv2d(&words, &packed, sizes)))),
            Box::new(|| drop(black_box(ring::conv2d(&words, &of_bits, sizes)))),
            Box::new(|| drop(black_box(conv2d(&x, &weight, &bias, sizes)))),
            Box::new(|| product([m, n, k], &weight, &patches, black_box(&mut y))),
        ]);
        println!(
            "conv {channels}->{channels} 3x3 at {size}x{size}, batch {batch}: convolution {convolution:.2}, matrix \
             product {matrix:.2}; ring of 32 bits {of_ring:.2} ({:.2}, {:.2}), of 26 bits {few_bits:.2} ({:.2}, {:.2}); \
             weights once {whole:.0} and {transformed:.0}",
            of_ring / convolution,
            of_ring / matrix,
            few_bits / convolution,
            few_bits / matrix,
        );
    }
    for (tokens, fan_in, outputs) in [(4096, 320, 320), (1024, 640, 640), (256, 1280, 1280)] {
        let words: Vec<i32> = (0..tokens * fan_in)
            .map(|i| (i as i32).wrapping_mul(0x9e37_79b9_u32 as i32))
            .collect();
        let rows: Vec<i16> = (0..outputs * fan_in)
            .map(|i| (i * 40_503 % 65_521) as i16)
            .collect();
        let packed = ring::Weights::new(&rows, outputs, 1);
        let x: Vec<f32> = words.iter().map(|word| *word as f32 * 1e-9).collect();
        let weight: Vec<f32> = rows.iter().map(|row| f32::from(*row) * 1e-5).collect();
        let mut y = vec![0.0; tokens * outputs];
        let [of_ring, matrix] = best([
            Box::new(|| drop(black_box(ring::linear(&words, &packed, tokens)))),
            Box::new(|| product([tokens, outputs, fan_in], &x, &weight, black_box(&mut y))),
        ]);
        println!(
            "linear {tokens} tokens, {fan_in}->{outputs}: ring {of_ring:.2}, matrix product {matrix:.2} ({:.2})",
            of_ring / matrix,
        );
    }
}
