//! Features as few bytes: number types, whole codes by blocks, and changes of what both ends know.
//!
//! Whole codes divide the values of a channel, 64 at a time, by their largest magnitude and round. The
//! temporal wires code the change since the last step in that way. Both ends add the decoded change to
//! what they hold, and the next change is taken against that sum, so the error of one step's rounding
//! is part of what the next step sends and never builds up (closed-loop DPCM, Cutler 1952).

use std::collections::HashMap;

use half::bf16;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::{HostTensor, all_finite, transpose_each};
use crate::message::{Payload, wrong_dtype};

/// Values that share a scale: their largest is near two and a half deviations, so four bits suffice
/// for most, and the scale costs a sixteenth of them.
const BLOCK: usize = 64;

/// What features are on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// Exact.
    #[default]
    #[serde(alias = "fp32", alias = "float32", alias = "float")]
    F32,
    /// 11 bits of precision, at most 65504.
    #[serde(alias = "fp16", alias = "float16", alias = "half")]
    F16,
    /// 8 bits of precision, the range of f32.
    #[serde(alias = "bfloat16")]
    Bf16,
    /// Whole codes of 8 bits by blocks of a channel ([`Codec`]).
    Int8,
    /// The change since the last step in codes of 8 bits.
    Delta8,
    /// The change since the last step in codes of 4 bits.
    Delta4,
}

impl Wire {
    /// Every wire, the most exact first.
    pub const ALL: [Self; 6] = [
        Self::F32,
        Self::F16,
        Self::Delta8,
        Self::Bf16,
        Self::Int8,
        Self::Delta4,
    ];

    /// Whether what arrives is what was sent, to the last bit.
    pub fn is_exact(self) -> bool {
        self == Self::F32
    }

    /// The same without changes, for what has nothing to do with what was sent before.
    pub fn timeless(self) -> Self {
        if self.is_temporal() { Self::Int8 } else { self }
    }

    /// Whether it sends changes, so that what is sent depends on what was sent before.
    pub fn is_temporal(self) -> bool {
        matches!(self, Self::Delta8 | Self::Delta4)
    }
}

/// How a tensor travels: in a number type of its own shape, or as codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Numbers of this type.
    Numbers(Dtype),
    /// Codes of so many bits, 4, 8 or 16.
    Codes(u32),
}

impl Coding {
    /// What `wire` does with a tensor, which is `fresh` when nothing like it was sent before.
    pub fn of(wire: Wire, fresh: bool) -> Self {
        match wire {
            Wire::F32 => Self::Numbers(Dtype::F32),
            Wire::F16 => Self::Numbers(Dtype::F16),
            Wire::Bf16 => Self::Numbers(Dtype::BF16),
            // There is no change yet. What changes of four bits lose hides what eight bits lose here; that of changes of
            // eight bits would not.
            Wire::Delta8 if fresh => Self::Codes(16),
            Wire::Delta4 if fresh => Self::Codes(8),
            Wire::Int8 | Wire::Delta8 => Self::Codes(8),
            Wire::Delta4 => Self::Codes(4),
        }
    }

    /// Number type and sizes in the message of a tensor of `shape`.
    pub fn layout(self, shape: &[usize]) -> (Dtype, Vec<usize>) {
        match self {
            Self::Numbers(dtype) => (dtype, shape.to_vec()),
            Self::Codes(bits) => {
                let values = shape.iter().product::<usize>();
                (Dtype::U8, vec![code_bytes(values, bits)])
            }
        }
    }

    /// Checks that the scales of a tensor of `values` values are finite, whatever the codes are added to.
    ///
    /// # Errors
    /// [`Error::NotFinite`]; `name` is what it calls the tensor.
    pub fn check_scales(self, name: &str, payload: &Payload, values: usize) -> Result<()> {
        let (Self::Codes(_), Payload::Codes { data, .. }) = (self, payload) else {
            return Ok(());
        };
        let (scales, _) = data.as_chunks::<2>();
        let mut scales = scales.iter().take(values.div_ceil(BLOCK));
        match scales.all(|scale| bf16::from_le_bytes(*scale).is_finite()) {
            true => Ok(()),
            false => Err(Error::NotFinite { name: name.into() }),
        }
    }
}

/// Bytes of the scales and codes of so many values.
fn code_bytes(values: usize, bits: u32) -> usize {
    values.div_ceil(BLOCK) * size_of::<bf16>() + (values * bits as usize).div_ceil(8)
}

/// One end of everything that goes one way between the user and a worker.
#[derive(Debug, Default)]
pub struct Codec {
    /// What the other end holds of each tensor that changes are sent of, channel by channel.
    known: HashMap<String, Vec<f32>>,
}

impl Codec {
    /// `tensor` for the wire; `name` tells it from others that go this way in a step. Batch entries come
    /// first in its sizes; then channels, `[B, C, H, W]`, or tokens, `[B, T, C]`.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when a value is beyond what the wire can hold.
    pub fn write(&mut self, name: &str, tensor: HostTensor, wire: Wire) -> Result<Payload> {
        let bits = match Coding::of(wire, !self.known.contains_key(name)) {
            Coding::Numbers(dtype) => return Payload::write(name, tensor, dtype),
            Coding::Codes(bits) => bits,
        };
        let mut values = by_channel(tensor);
        let known = wire.is_temporal().then(|| self.entry(name, values.len()));
        if let Some(known) = &known {
            values
                .iter_mut()
                .zip(known.iter())
                .for_each(|(x, k)| *x -= k);
        }
        let too_large = || Error::TooLarge {
            name: name.into(),
            dtype: format!("{bits} bits"),
        };
        let codes = quantise(&values, bits).ok_or_else(too_large)?;
        if let Some(known) = known {
            add_codes(known, &codes, bits);
            // Near f32's end changes add up to more than it holds, which the other end would refuse.
            if !all_finite(known) {
                return Err(too_large());
            }
        }
        Ok(Payload::of_codes(codes))
    }

    /// The tensor of `shape` that [`Self::write`] of the other end made `payload` of, up to rounding.
    ///
    /// # Errors
    /// [`Error::WrongShape`] when the payload has another size, [`Error::WrongDtype`] when it holds
    /// statistics, [`Error::NotFinite`] when the codes stand for no numbers.
    pub fn read(
        &mut self,
        name: &str,
        payload: Payload,
        shape: &[usize],
        wire: Wire,
    ) -> Result<HostTensor> {
        let coding = Coding::of(wire, !self.known.contains_key(name));
        let (dtype, layout) = coding.layout(shape);
        if payload.dtype() != dtype {
            return Err(wrong_dtype(name, payload.dtype()));
        }
        if payload.shape() != layout {
            return Err(Error::WrongShape {
                name: name.into(),
                want: layout,
                got: payload.shape().to_vec(),
            });
        }
        let (Coding::Codes(bits), Payload::Codes { data: codes, .. }) = (coding, &payload) else {
            return payload.into_tensor(name);
        };
        let len = shape.iter().product();
        let tensor = if wire.is_temporal() {
            let known = self.entry(name, len);
            add_codes(known, codes, bits);
            from_channels(known.clone(), shape)
        } else {
            let mut values = vec![0.0; len];
            add_codes(&mut values, codes, bits);
            from_channels(values, shape)
        }?;
        tensor.check_finite(name)?;
        Ok(tensor)
    }

    /// What is known of `name`: nothing at first.
    fn entry(&mut self, name: &str, len: usize) -> &mut Vec<f32> {
        self.known
            .entry(name.to_owned())
            .or_insert_with(|| vec![0.0; len])
    }
}

/// A tensor's values channel by channel: channels of tokens differ in size by orders of magnitude.
fn by_channel(tensor: HostTensor) -> Vec<f32> {
    match tensor.shape[..] {
        [_, t, c] => transpose_each(&tensor.data, t, c),
        _ => tensor.data,
    }
}

fn from_channels(values: Vec<f32>, shape: &[usize]) -> Result<HostTensor> {
    let values = match *shape {
        [_, t, c] => transpose_each(&values, c, t),
        _ => values,
    };
    HostTensor::new(shape, values)
}

/// The scales of all blocks, then all codes; none when a value has no code.
fn quantise(values: &[f32], bits: u32) -> Option<Vec<u8>> {
    let most = ((1 << (bits - 1)) - 1) as f32;
    let mut out = Vec::with_capacity(code_bytes(values.len(), bits));
    let mut factors = Vec::with_capacity(values.len().div_ceil(BLOCK));
    for block in values.chunks(BLOCK) {
        let largest = block.iter().fold(0f32, |most, x| most.max(x.abs()));
        // `max` passes over NaN.
        if !largest.is_finite() || block.iter().any(|x| x.is_nan()) {
            return None;
        }
        let scale = round_up(largest / most);
        if !scale.is_finite() {
            return None;
        }
        out.extend_from_slice(&scale.to_le_bytes());
        let scale = scale.to_f32();
        factors.push(if scale > 0.0 { 1.0 / scale } else { 0.0 });
    }
    let code = |x: f32, factor: f32| {
        let scaled = (x * factor).clamp(-most, most);
        (scaled + 0.5f32.copysign(scaled)) as i32
    };
    for (block, &factor) in values.chunks(BLOCK).zip(&factors) {
        match bits {
            4 => out.extend(block.chunks(2).map(|pair| {
                let nibble = |i: usize| (code(*pair.get(i).unwrap_or(&0.0), factor) & 15) as u8;
                nibble(0) | nibble(1) << 4
            })),
            8 => out.extend(block.iter().map(|x| code(*x, factor) as i8 as u8)),
            _ => out.extend(
                block
                    .iter()
                    .flat_map(|x| (code(*x, factor) as i16).to_le_bytes()),
            ),
        }
    }
    Some(out)
}

/// The least bf16 that is not below `scale`, so that no code is beyond its range.
fn round_up(scale: f32) -> bf16 {
    let near = bf16::from_f32(scale);
    if near.to_f32() < scale {
        bf16::from_bits(near.to_bits() + 1)
    } else {
        near
    }
}

/// Adds what `codes` stand for. Both ends do this, with the same result to the last bit.
fn add_codes(values: &mut [f32], codes: &[u8], bits: u32) {
    let blocks = values.len().div_ceil(BLOCK);
    let (scales, codes) = codes.split_at(blocks * size_of::<bf16>());
    let (scales, _) = scales.as_chunks::<2>();
    let block_bytes = BLOCK * bits as usize / 8;
    for ((block, scale), codes) in values
        .chunks_mut(BLOCK)
        .zip(scales)
        .zip(codes.chunks(block_bytes))
    {
        let scale = bf16::from_le_bytes(*scale).to_f32();
        match bits {
            4 => {
                for (pair, byte) in block.chunks_mut(2).zip(codes) {
                    // The sign is the nibble's uppermost bit.
                    let nibbles = [(byte << 4) as i8 >> 4, *byte as i8 >> 4];
                    for (x, code) in pair.iter_mut().zip(nibbles) {
                        *x += scale * f32::from(code);
                    }
                }
            }
            8 => {
                for (x, code) in block.iter_mut().zip(codes) {
                    *x += scale * f32::from(*code as i8);
                }
            }
            _ => {
                for (x, code) in block.iter_mut().zip(codes.as_chunks::<2>().0) {
                    *x += scale * f32::from(i16::from_le_bytes(*code));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values whose channels differ in size, at a `step` of a slow change.
    fn tensor(shape: &[usize], step: usize) -> HostTensor {
        let len: usize = shape.iter().product();
        let value = |i: usize| {
            let size = [1.0, 0.01, 300.0][i % 3];
            size * ((i * i % 101) as f32 / 50.0 - 1.0 + 0.05 * (step as f32 + i as f32).sin())
        };
        HostTensor::new(shape, (0..len).map(value).collect()).unwrap()
    }

    fn worst(a: &HostTensor, b: &HostTensor) -> f32 {
        let pairs = a.data.iter().zip(&b.data);
        pairs.fold(0.0, |most, (a, b)| most.max((a - b).abs()))
    }

    #[test]
    fn codes_are_as_long_as_promised_and_near() {
        // Odd numbers of values, and fewer than a block's.
        for shape in [
            vec![2, 5, 3],
            vec![1, 3, 1, 65],
            vec![1, 7, 9, 11],
            vec![1, 1, 1],
        ] {
            for (wire, most) in [
                (Wire::Int8, 127.0),
                (Wire::Delta4, 127.0),
                (Wire::Delta8, 32767.0),
            ] {
                let want = tensor(&shape, 0);
                let payload = Codec::default().write("x", want.clone(), wire).unwrap();
                let (dtype, layout) = Coding::of(wire, true).layout(&shape);
                assert_eq!((payload.dtype(), payload.shape()), (dtype, &layout[..]));
                let got = Codec::default().read("x", payload, &shape, wire).unwrap();
                // Half a code, of a scale that is rounded up by at most a 128th.
                assert!(
                    worst(&got, &want) <= 0.505 * 310.0 / most,
                    "{shape:?} {wire:?}"
                );
            }
        }
    }

    #[test]
    fn a_small_channel_keeps_its_precision_beside_a_large_one() {
        let mut want = HostTensor::zeros([1, 64, 2]);
        for (i, x) in want.data.iter_mut().enumerate() {
            *x = if i % 2 == 0 {
                1e4
            } else {
                1e-3 * (i as f32).cos()
            };
        }
        let payload = Codec::default()
            .write("x", want.clone(), Wire::Int8)
            .unwrap();
        let shape = want.shape.clone();
        let got = Codec::default()
            .read("x", payload, &shape, Wire::Int8)
            .unwrap();
        let small = |t: &HostTensor| {
            HostTensor::new([64], t.data.iter().skip(1).step_by(2).copied().collect())
        };
        assert!(worst(&small(&got).unwrap(), &small(&want).unwrap()) < 1e-5);
    }

    #[test]
    fn changes_follow_what_changes_and_errors_do_not_build_up() {
        let wires = [(Wire::Delta8, 0.001, [16, 8]), (Wire::Delta4, 0.02, [8, 4])];
        for (wire, share, bits) in wires {
            let (mut from, mut to) = (Codec::default(), Codec::default());
            let mut bytes = Vec::new();
            for step in 0..50 {
                let want = tensor(&[1, 40, 30], step);
                let payload = from.write("x", want.clone(), wire).unwrap();
                bytes.push(payload.bytes());
                let got = to.read("x", payload, &want.shape, wire).unwrap();
                assert!(worst(&got, &want) < 300.0 * share, "{wire:?} at {step}");
            }
            assert_eq!(from.known, to.known, "both ends hold the same");
            let [first, later] = bits.map(|bits| code_bytes(1200, bits));
            assert_eq!(bytes[0], first);
            assert!(bytes[1..].iter().all(|bytes| *bytes == later));
        }
    }

    /// Near f32's end a change may add up to more than it holds.
    #[test]
    fn what_can_be_written_can_be_read() {
        let large = [f32::MAX, 3.3e38, 1.7e38, -1.7e38, 1.0];
        let mut refused = 0;
        for wire in Wire::ALL {
            for i in 0..large.len().pow(3) {
                let step = |n: u32| large[i / large.len().pow(n) % large.len()];
                let (mut ours, mut theirs) = (Codec::default(), Codec::default());
                for value in [step(0), step(1), step(2)] {
                    let x = HostTensor::new([1, 1, 2], vec![value, 1.0]).unwrap();
                    let Ok(payload) = ours.write("x", x, wire) else {
                        refused += 1;
                        break;
                    };
                    let read = theirs.read("x", payload, &[1, 1, 2], wire);
                    assert!(read.is_ok(), "{wire:?}, {value}: {read:?}");
                }
            }
        }
        assert!(refused > 0);
    }

    #[test]
    fn what_is_no_number_is_refused_by_name() {
        for poison in [f32::NAN, f32::INFINITY] {
            let x = HostTensor::new([1, 1, 2], vec![1.0, poison]).unwrap();
            let error = Codec::default().write("x", x, Wire::Int8).unwrap_err();
            assert!(matches!(error, Error::TooLarge { name, .. } if name == "x"));
        }
        let x = HostTensor::new([1, 1, 2], vec![1.0, 2.0]).unwrap();
        let Payload::Codes {
            data: mut codes, ..
        } = Codec::default().write("x", x, Wire::Int8).unwrap()
        else {
            panic!("no codes");
        };
        codes[..2].copy_from_slice(&bf16::INFINITY.to_le_bytes());
        let mut codec = Codec::default();
        let read = codec.read(
            "x",
            Payload::of_codes(codes.clone()),
            &[1, 1, 2],
            Wire::Int8,
        );
        assert!(matches!(read, Err(Error::NotFinite { .. })));
        codes.pop();
        let read = codec.read("x", Payload::of_codes(codes), &[1, 1, 2], Wire::Int8);
        assert!(matches!(read, Err(Error::WrongShape { .. })));
        let numbers = Payload::F32(HostTensor::zeros([1, 1, 2]));
        let read = codec.read("x", numbers, &[1, 1, 2], Wire::Int8);
        assert!(matches!(read, Err(Error::WrongDtype { .. })));
    }
}
