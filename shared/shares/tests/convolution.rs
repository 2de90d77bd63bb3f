//! A convolution by shares of a ring from end to end: what the user and the workers do, with the kernels that do it.
#![allow(missing_docs)]

use lacuna_kernels::conv::{self, Sizes};
use lacuna_kernels::ring;
use lacuna_shares::Ring;
use lacuna_shares::check::{Check, VECTORS, threshold};
use lacuna_shares::join::{Outputs, join};
use lacuna_shares::pack::{pack, unpack};
use lacuna_shares::split::{Extent, split};
use lacuna_shares::stream::{Key, Masks};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SIZES: Sizes = Sizes {
    batch: 2,
    c_in: 33,
    c_out: 50,
    size: [16, 12],
    kernel: 3,
    stride: 1,
    padding: [1, 1],
    odd: false,
};

/// A worker: from the f32 weights that everybody has, and its share.
fn product(rows: &[f32], ring: Ring, share: &[i32]) -> Vec<u8> {
    let integers = ring.quantise(rows, SIZES.c_out);
    let weights = ring::Weights::of_bits(&integers.weights, SIZES, ring.up());
    let products = ring::conv2d(share, &weights, SIZES);
    pack(&ring.round(&products), ring.down()).unwrap()
}

#[test]
fn workers_multiply_words_and_the_user_has_the_layer() {
    let mut rng = StdRng::seed_from_u64(1);
    let mut some = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let [h, w] = SIZES.size;
    let features = SIZES.batch * SIZES.c_in * h * w;
    let (x, rows, bias) = (
        some(features),
        some(SIZES.c_out * SIZES.c_in * 9),
        some(SIZES.c_out),
    );
    let exact = conv::conv2d(&x, &rows, &bias, SIZES);
    let values = SIZES.out_size().into_iter().product::<usize>();
    for (ring, workers, least) in [
        (Ring::PAPER, 2, 38.0),
        (Ring::SPEED, 3, 53.0),
        (Ring::QUALITY, 4, 72.0),
    ] {
        // The user reads the weights once, and has what it needs of them.
        let mut secret = Masks::fresh().unwrap();
        let integers = ring.quantise(&rows, SIZES.c_out);
        let check = Check::of_ring(&mut secret, &integers, ring).unwrap();
        let scales = integers.scales;
        let outputs = Outputs {
            scales: &scales,
            values,
        };
        // A layer's input is hidden.
        let mut streams: Vec<Masks> = (1..workers).map(|_| Masks::fresh().unwrap()).collect();
        let keys = streams.iter().map(|stream| Key::received(stream.to_send()));
        let keys: Vec<Key> = keys.collect();
        let masks = streams
            .iter_mut()
            .map(|stream| stream.draw(features, ring.up()));
        let masks: Vec<Vec<i32>> = masks.map(Result::unwrap).collect();
        let extent = Extent::of_windows(&x, [SIZES.c_in, h, w], SIZES.kernel, None).unwrap();
        let step = extent.step(ring, workers);
        let (share, _) = split(&x, step, &masks, ring).unwrap();
        let sent = pack(&share, ring.up()).unwrap();
        // Workers answer.
        let drawn = keys.iter().map(|key| key.mask(0, features, ring.up()));
        let mut shares: Vec<Vec<i32>> = drawn.map(Result::unwrap).collect();
        shares.push(unpack(&sent, features, ring.up()).unwrap());
        let answers = shares.iter().map(|share| product(&rows, ring, share));
        let words = answers.map(|answer| {
            let words = SIZES.batch * SIZES.c_out * values;
            unpack(&answer, words, ring.down()).unwrap()
        });
        let words: Vec<Vec<i32>> = words.collect();
        // Each answer is what it must be, and another would be noticed.
        let vectors = ring::Weights::new(check.weights(), 2 * VECTORS, SIZES.kernel);
        let sizes = Sizes {
            c_out: 2 * VECTORS,
            ..SIZES
        };
        let most = threshold(SIZES.batch * values);
        for (words, share) in words.iter().zip(&shares) {
            let expected = check.expected(&ring::conv2d(share, &vectors, sizes), outputs);
            let apart = |words: &[i32]| check.mean(words, &expected, outputs, ring.up()).unwrap();
            assert!(apart(words) < most, "{ring:?}: {}", apart(words));
            let mut moved = words.clone();
            moved.rotate_right(1);
            assert!(apart(&moved) > most, "{ring:?}: {}", apart(&moved));
        }
        // And together they are the layer's output.
        let mut y = vec![f32::NAN; exact.len()];
        join(&words, &mut y, outputs, &bias, step, ring).unwrap();
        let signal: f64 = exact.iter().map(|y| f64::from(*y).powi(2)).sum();
        let pairs = exact.iter().zip(&y);
        let noise: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let db = 10.0 * (signal / noise).log10();
        println!("{ring:?}, {workers} workers: {db:.1} dB");
        assert!(db > least, "{ring:?}, {workers} workers: {db:.1} dB");
    }
}
