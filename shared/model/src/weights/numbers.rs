//! Numbers as files have them, read as f32.

use half::f16;
use half::slice::HalfFloatSliceExt;
use lacuna_wire::host::{BAND, all_finite, transpose_band};
use safetensors::Dtype;

/// Numbers that are read at a time: they stay in the cache until they are where they belong.
const RUN: usize = 2048;

/// Shows little-endian numbers as f32, run after run. The bytes may be misaligned.
pub(super) type Decode = fn(&[u8], &mut dyn FnMut(&[f32]));

/// How numbers of a type are read, or `None` where they are not.
pub(super) fn decoder(dtype: Dtype) -> Option<Decode> {
    match dtype {
        Dtype::F32 => Some(|bytes, look| each(bytes, look, f32::from_le_bytes)),
        Dtype::F16 => Some(halves),
        // The upper half of an f32.
        Dtype::BF16 => Some(|bytes, look| {
            let upper = |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16);
            each(bytes, look, upper);
        }),
        // The reference's sums are in f32, too.
        Dtype::F64 => Some(|bytes, look| each(bytes, look, |b| f64::from_le_bytes(b) as f32)),
        Dtype::F8_E4M3 => Some(|bytes, look| small_floats(bytes, look, 4)),
        Dtype::F8_E5M2 => Some(|bytes, look| small_floats(bytes, look, 5)),
        _ => None,
    }
}

/// Numbers of `N` bytes, each by `read`.
fn each<const N: usize>(bytes: &[u8], look: &mut dyn FnMut(&[f32]), read: impl Fn([u8; N]) -> f32) {
    let mut run = [0.0; RUN];
    for part in bytes.as_chunks::<N>().0.chunks(RUN) {
        let run = &mut run[..part.len()];
        for (to, from) in run.iter_mut().zip(part) {
            *to = read(*from);
        }
        look(run);
    }
}

/// Numbers in half precision, many with one instruction where the machine has one.
fn halves(bytes: &[u8], look: &mut dyn FnMut(&[f32])) {
    let (mut halves, mut run) = ([f16::ZERO; RUN], [0.0; RUN]);
    for part in bytes.as_chunks::<2>().0.chunks(RUN) {
        let (halves, run) = (&mut halves[..part.len()], &mut run[..part.len()]);
        for (to, from) in halves.iter_mut().zip(part) {
            *to = f16::from_le_bytes(*from);
        }
        halves.convert_to_f32_slice(run);
        look(run);
    }
}

/// Numbers of eight bits.
fn small_floats(bytes: &[u8], look: &mut dyn FnMut(&[f32]), exponent_bits: u32) {
    let all: [f32; 256] = std::array::from_fn(|byte| small_float(byte as u8, exponent_bits));
    each(bytes, look, |[byte]| all[usize::from(byte)]);
}

/// A number of eight bits with so many bits of exponent (Micikevicius et al. 2022, table 1): of 4, no infinity, and of
/// each sign one pattern that is no number; of 5, as IEEE 754 has it.
fn small_float(byte: u8, exponent_bits: u32) -> f32 {
    let mantissa_bits = 7 - exponent_bits;
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let exponent = u32::from(byte & 0x7f) >> mantissa_bits;
    let mantissa = u32::from(byte) & ((1 << mantissa_bits) - 1);
    let largest = (1 << exponent_bits) - 1;
    if exponent == largest {
        match (exponent_bits, mantissa) {
            (5, 0) => return sign * f32::INFINITY,
            (5, _) | (_, 7) => return f32::NAN,
            _ => {}
        }
    }
    let bias = (1 << (exponent_bits - 1)) - 1;
    let fraction = mantissa as f32 / (1 << mantissa_bits) as f32;
    let power = |exponent: i32| 2.0_f32.powi(exponent - bias);
    match exponent {
        0 => sign * fraction * power(1),
        _ => sign * (1.0 + fraction) * power(exponent as i32),
    }
}

/// A tensor that is being read.
pub(super) struct Reading {
    values: Vec<f32>,
    finite: bool,
    turning: Option<Turning>,
}

/// A matrix `[rows, columns]` whose columns come to lie one after the other. It is turned a band of rows at a time, so that
/// there is never a second copy of it.
struct Turning {
    rows: usize,
    columns: usize,
    /// Rows that are where they belong.
    done: usize,
    /// The values of those that follow.
    band: Vec<f32>,
}

impl Reading {
    /// Of so many values, in the file's order.
    pub(super) fn plain(values: usize) -> Self {
        Self {
            values: Vec::with_capacity(values),
            finite: true,
            turning: None,
        }
    }

    /// Of the file's matrix `[rows, columns]` as `[columns, rows]`.
    pub(super) fn turned(rows: usize, columns: usize) -> Self {
        Self {
            values: vec![0.0; rows * columns],
            finite: true,
            turning: Some(Turning {
                rows,
                columns,
                done: 0,
                band: Vec::with_capacity(BAND.min(rows) * columns),
            }),
        }
    }

    /// Takes the next values.
    pub(super) fn push(&mut self, mut run: &[f32]) {
        self.finite &= all_finite(run);
        let Some(turning) = &mut self.turning else {
            return self.values.extend_from_slice(run);
        };
        while !run.is_empty() {
            let room = BAND * turning.columns - turning.band.len();
            let (now, later) = run.split_at(room.min(run.len()));
            turning.band.extend_from_slice(now);
            if now.len() == room {
                turning.turn(&mut self.values);
            }
            run = later;
        }
    }

    /// The tensor's values; none where one of them is not finite.
    pub(super) fn finish(mut self) -> Option<Vec<f32>> {
        if let Some(turning) = &mut self.turning {
            turning.turn(&mut self.values);
        }
        self.finite.then_some(self.values)
    }
}

impl Turning {
    /// Brings the band to where it belongs.
    fn turn(&mut self, to: &mut [f32]) {
        transpose_band(&self.band, self.columns, to, self.rows, self.done);
        self.done += self.band.len() / self.columns.max(1);
        self.band.clear();
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// What `bytes` hold, from the second byte on.
    fn decoded(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
        let (mut out, shifted) = (Vec::new(), [&[0], bytes].concat());
        decoder(dtype).unwrap()(&shifted[1..], &mut |run| out.extend_from_slice(run));
        out
    }

    #[test]
    fn every_type_is_read_over_runs_and_from_anywhere() {
        let want: Vec<f32> = (0..2 * RUN + 5).map(|i| (i % 509) as f32 - 254.0).collect();
        let bytes = |each: &dyn Fn(f32) -> Vec<u8>| want.iter().flat_map(|x| each(*x)).collect();
        let of: [(Dtype, Vec<u8>); 4] = [
            (Dtype::F32, bytes(&|x| x.to_le_bytes().to_vec())),
            (Dtype::F64, bytes(&|x| f64::from(x).to_le_bytes().to_vec())),
            (
                Dtype::F16,
                bytes(&|x| f16::from_f32(x).to_le_bytes().to_vec()),
            ),
            (
                Dtype::BF16,
                bytes(&|x| bf16::from_f32(x).to_le_bytes().to_vec()),
            ),
        ];
        for (dtype, bytes) in of {
            assert!(decoded(dtype, &bytes) == want, "{dtype:?}");
        }
        let all: Vec<u8> = (0..=255).collect();
        let small = decoded(Dtype::F8_E5M2, &all);
        assert_eq!(
            (small.len(), small[0xbc], small[0x7b]),
            (256, -1.0, 57344.0)
        );
        assert!(decoder(Dtype::I64).is_none());
    }

    #[test]
    fn halves_of_every_pattern_are_the_librarys() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let (halves, brain) = (decoded(Dtype::F16, &all), decoded(Dtype::BF16, &all));
        let same = |got: f32, want: f32| got == want || got.is_nan() && want.is_nan();
        for pattern in 0..=u16::MAX {
            let i = usize::from(pattern);
            assert!(
                same(halves[i], f16::from_bits(pattern).to_f32()),
                "{pattern:#x}"
            );
            assert!(
                same(brain[i], bf16::from_bits(pattern).to_f32()),
                "{pattern:#x}"
            );
        }
    }

    #[test]
    fn a_matrix_is_turned_however_it_comes_in() {
        let (rows, columns) = (BAND + 5, 7);
        let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let want: Vec<f32> = (0..rows * columns)
            .map(|i| (i % rows * columns + i / rows) as f32)
            .collect();
        for piece in [1, 6, 7, 1000, rows * columns] {
            let (mut turned, mut plain) = (Reading::turned(rows, columns), Reading::plain(0));
            for run in values.chunks(piece) {
                turned.push(run);
                plain.push(run);
            }
            assert_eq!(turned.finish().unwrap(), want, "{piece}");
            assert_eq!(plain.finish().unwrap(), values);
        }
    }

    #[test]
    fn what_is_not_finite_is_told() {
        for odd in [f32::NAN, f32::INFINITY] {
            let (mut turned, mut plain) = (Reading::turned(2, 2), Reading::plain(4));
            for reading in [&mut turned, &mut plain] {
                reading.push(&[1.0, odd]);
                reading.push(&[1.0, 1.0]);
            }
            assert!(turned.finish().is_none() && plain.finish().is_none());
        }
    }

    #[test]
    fn eight_bits_are_the_numbers_of_the_standard() {
        // Table 1 of the paper: largest, smallest normal, largest and smallest below.
        for (byte, want) in [
            (0x7e, 448.0),
            (0x08, 2f32.powi(-6)),
            (0x07, 0.875 * 2f32.powi(-6)),
            (0x01, 2f32.powi(-9)),
            (0xb8, -1.0),
            (0, 0.0),
        ] {
            assert_eq!(small_float(byte, 4), want, "{byte:#x}");
        }
        for (byte, want) in [
            (0x7b, 57344.0),
            (0x04, 2f32.powi(-14)),
            (0x03, 0.75 * 2f32.powi(-14)),
            (0x01, 2f32.powi(-16)),
            (0x7c, f32::INFINITY),
            (0xbc, -1.0),
        ] {
            assert_eq!(small_float(byte, 5), want, "{byte:#x}");
        }
        assert!(small_float(0xff, 4).is_nan() && small_float(0x7d, 5).is_nan());
    }
}
