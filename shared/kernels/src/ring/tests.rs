use super::*;

/// Words without a pattern, of which some are as large as words can be.
fn words(len: usize, seed: u32) -> Vec<i32> {
    let extreme = [
        i32::MIN,
        i32::MAX,
        -1,
        0,
        1 << 15,
        (1 << 15) - 1,
        -(1 << 15),
        0xffff,
    ];
    let mut state = seed;
    let mut next = || {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let one = |_| match next() {
        drawn if drawn.is_multiple_of(5) => extreme[(drawn / 5 % 8) as usize],
        drawn => drawn as i32,
    };
    (0..len).map(one).collect()
}

fn weights(len: usize, seed: u32) -> Vec<i16> {
    let one = |word: i32| match word {
        i32::MIN | -1 => i16::MIN,
        word => word as i16,
    };
    words(len, seed).into_iter().map(one).collect()
}

/// Every width that this machine has and `LACUNA_VECTORS` allows.
fn widths() -> impl Iterator<Item = Width> {
    let all = [Width::Portable, Width::Avx2, Width::Avx512, Width::Vnni];
    all.into_iter().filter(|one| *one <= width())
}

/// The convolution by its definition.
fn plain(x: &[i32], weights: &[i16], s: Sizes) -> Vec<i32> {
    let ([h, w], [h_out, w_out]) = (s.size, s.out_size());
    let mut out = Vec::new();
    for (b, o) in (0..s.batch).flat_map(|b| (0..s.c_out).map(move |o| (b, o))) {
        for (y, z) in (0..h_out).flat_map(|y| (0..w_out).map(move |z| (y, z))) {
            let mut sum = 0_i32;
            for (i, tap) in (0..s.c_in).flat_map(|i| (0..s.kernel * s.kernel).map(move |t| (i, t)))
            {
                let iy = (y * s.stride + tap / s.kernel).wrapping_sub(s.padding[0]);
                let ix = (z * s.stride + tap % s.kernel).wrapping_sub(s.padding[1]);
                if iy < h && ix < w {
                    let weight = weights[(o * s.c_in + i) * s.kernel * s.kernel + tap];
                    let x = x[((b * s.c_in + i) * h + iy) * w + ix];
                    sum = sum.wrapping_add(x.wrapping_mul(weight.into()));
                }
            }
            out.push(sum);
        }
    }
    out
}

#[test]
fn a_convolution_is_the_formula_to_the_last_bit() {
    for (batch, c_in, c_out, size, kernel, stride, padding) in [
        (2, 5, 13, [31, 37], 3, 1, [1, 1]),
        (1, 70, 9, [23, 29], 3, 1, [0, 1]),
        (3, 33, 17, [7, 5], 3, 1, [1, 1]),
        (2, 6, 11, [22, 19], 3, 2, [1, 1]),
        (2, 6, 11, [23, 8], 3, 2, [0, 1]),
        (2, 19, 23, [25, 27], 1, 1, [0, 0]),
        (2, 19, 23, [5, 6], 1, 1, [0, 0]),
        (1, 3, 4, [9, 9], 1, 2, [0, 0]),
        (1, 3, 2, [1, 1], 3, 1, [1, 1]),
        (1, 2, 3, [6, 2], 5, 1, [2, 2]),
        (1, 1, 1, [3, 3], 3, 1, [0, 0]),
        (5, 48, 40, [8, 8], 3, 1, [1, 1]),
        (1, 16, 96, [16, 16], 3, 1, [1, 1]),
    ] {
        let sizes = Sizes {
            batch,
            c_in,
            c_out,
            size,
            kernel,
            stride,
            padding,
            odd: false,
        };
        let x = words(batch * c_in * size[0] * size[1], 7);
        let rows = weights(c_out * c_in * kernel * kernel, 9);
        let packed = Weights::new(&rows, c_out, kernel);
        let want = plain(&x, &rows, sizes);
        for width in widths() {
            assert!(
                conv2d_in(width, &x, &packed, sizes) == want,
                "{width:?}: {sizes:?}"
            );
        }
    }
}

/// Where transforms fit, and where they do not: of the extreme weights of the other tests.
#[test]
fn a_transformed_convolution_has_the_lowest_bits() {
    let mut transformed = 0;
    for (batch, c_in, c_out, size, padding) in [
        (2, 5, 13, [31, 37], [1, 1]),
        (1, 70, 9, [23, 29], [0, 1]),
        (3, 33, 17, [7, 5], [1, 1]),
        (1, 3, 2, [11, 12], [1, 1]),
        (1, 1, 1, [14, 14], [0, 0]),
        (5, 150, 40, [8, 8], [1, 1]),
        (1, 16, 96, [16, 16], [1, 1]),
        (1, 6, 6, [9, 70], [2, 0]),
    ] {
        let sizes = Sizes {
            batch,
            c_in,
            c_out,
            size,
            kernel: 3,
            stride: 1,
            padding,
            odd: false,
        };
        let x = words(batch * c_in * size[0] * size[1], 7);
        let extreme = weights(c_out * c_in * 9, 9);
        let small: Vec<i16> = extreme.iter().map(|w| w / 9).collect();
        for rows in [extreme, small] {
            let packed = Weights::of_bits(&rows, sizes, 30);
            transformed += usize::from(packed.transformed);
            let want = plain(&x, &rows, sizes);
            for width in widths() {
                let got = conv2d_in(width, &x, &packed, sizes);
                let mut pairs = got.iter().zip(&want);
                assert!(
                    got.len() == want.len() && pairs.all(|(got, want)| got << 2 == want << 2),
                    "{width:?}: {sizes:?}"
                );
            }
        }
    }
    // Of the extreme ones those of one kernel, perhaps.
    assert!((8..10).contains(&transformed), "{transformed}");
    let transformed =
        |weight, size, bits| Weights::of_bits(&[weight; 9], one(size, 1), bits).transformed;
    assert!(transformed(1, 12, 30));
    assert!(!transformed(1, 12, 31) && !transformed(1, 8, 30));
    // Three times the norm of what is allowed is the largest number; one more is too large.
    assert!(transformed(3640, 12, 30) && !transformed(3641, 12, 30));
}

/// A convolution of one channel.
fn one(size: usize, stride: usize) -> Sizes {
    Sizes {
        batch: 1,
        c_in: 1,
        c_out: 1,
        size: [size; 2],
        kernel: 3,
        stride,
        padding: [1, 1],
        odd: false,
    }
}

#[test]
#[should_panic(expected = "stride of a transformed convolution")]
fn a_transformed_kernel_takes_no_steps() {
    let packed = Weights::of_bits(&[1; 9], one(12, 1), 30);
    conv2d(&[0; 144], &packed, one(12, 2));
}

#[test]
fn a_linear_map_is_the_formula_to_the_last_bit() {
    for (tokens, fan_in, outputs) in [
        (1, 1, 1),
        (7, 33, 5),
        (33, 320, 13),
        (77, 768, 64),
        (100, 35, 100),
    ] {
        let x = words(tokens * fan_in, 3);
        let rows = weights(outputs * fan_in, 5);
        let want: Vec<i32> = (x.chunks(fan_in))
            .flat_map(|token| {
                let rows = rows.chunks(fan_in);
                rows.map(move |row| {
                    let pairs = token.iter().zip(row);
                    pairs.fold(0, |sum: i32, (x, w)| {
                        sum.wrapping_add(x.wrapping_mul((*w).into()))
                    })
                })
            })
            .collect();
        let packed = Weights::new(&rows, outputs, 1);
        for width in widths() {
            let got = linear_in(width, &x, &packed, tokens);
            assert!(got == want, "{width:?}: {tokens} {fan_in} {outputs}");
        }
    }
}

/// The largest of all: where one half's sums of a pair leave 32 bits, and the lower half is on its edge.
#[test]
fn sums_wrap() {
    let (tokens, fan_in) = (2, 4096);
    for word in [i32::MIN, i32::MAX, 0x7fff, 0x8000, -0x8000, 0x1_8000, -1] {
        for weight in [i16::MIN, i16::MAX, -1] {
            let packed = Weights::new(&vec![weight; fan_in], 1, 1);
            let want = word.wrapping_mul(weight.into()).wrapping_mul(fan_in as i32);
            for width in widths() {
                let got = linear_in(width, &vec![word; tokens * fan_in], &packed, tokens);
                assert_eq!(got, [want; 2], "{width:?}: {word} {weight}");
            }
        }
    }
}

#[test]
fn nothing_gives_nothing() {
    let empty = Weights::new(&[], 0, 3);
    let sizes = Sizes {
        batch: 2,
        c_in: 0,
        c_out: 0,
        size: [4, 4],
        kernel: 3,
        stride: 1,
        padding: [1, 1],
        odd: false,
    };
    assert!(conv2d(&[], &empty, sizes).is_empty());
    let wide = Sizes {
        size: [16, 16],
        ..sizes
    };
    assert!(conv2d(&[], &Weights::of_bits(&[], wide, 26), wide).is_empty());
    // Nothing to sum: zeros.
    let unfed = Weights::new(&[], 5, 3);
    let sizes = Sizes { c_out: 5, ..sizes };
    assert_eq!(conv2d(&[], &unfed, sizes), [0; 160]);
    let wide = Sizes { c_out: 5, ..wide };
    let unfed = Weights::of_bits(&[], wide, 26);
    assert_eq!(conv2d(&[], &unfed, wide), [0; 2560]);
    assert_eq!(linear(&[], &Weights::new(&[], 5, 1), 2), [0; 10]);
    assert!(linear(&[], &Weights::new(&[1; 6], 2, 1), 0).is_empty());
}

#[test]
#[should_panic(expected = "weights of a convolution")]
fn weights_of_another_layer_are_refused() {
    let packed = Weights::new(&[1; 18], 2, 3);
    let sizes = Sizes {
        batch: 1,
        c_in: 2,
        c_out: 1,
        size: [4, 4],
        kernel: 3,
        stride: 1,
        padding: [1, 1],
        odd: false,
    };
    conv2d(&[0; 32], &packed, sizes);
}

#[test]
#[should_panic(expected = "weights of 5 outputs")]
fn half_a_row_is_refused() {
    Weights::new(&[1; 7], 5, 1);
}
