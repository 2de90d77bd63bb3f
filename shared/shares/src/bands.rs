//! Bands of rows: a layer's input is sent, and its output answered, one band after the other, so that both ways are
//! busy at the same time.
//!
//! A feature map `[B, C, H, W]` has `H` rows in each of `B C` planes, tokens `[B, T, C]` have `T` in each of `B`. A band
//! has the rows of all planes, and is packed by itself.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::pack::{Packer, Unpacker, bytes};

/// How a layer's output rows follow from those of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Rows of the input.
    pub input: usize,
    /// Rows that it is enlarged to before, every one twice; as many as of the input where it is not.
    pub enlarged: usize,
    /// Rows of the kernel.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Zeros above and below.
    pub padding: usize,
}

/// A band of the input, and the outputs that are known once it is there and were not before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Band {
    /// Rows of the input.
    pub input: Range<usize>,
    /// Rows of the output.
    pub output: Range<usize>,
}

/// What some output rows are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Rows of the input.
    pub input: Range<usize>,
    /// Of these, once enlarged, the first that is needed, and how many are.
    pub enlarged: [usize; 2],
    /// Rows of zeros above and below.
    pub zeros: [usize; 2],
}

impl Rows {
    /// Of `tokens` tokens, of which each gives one.
    pub fn of_tokens(tokens: usize) -> Self {
        Self {
            input: tokens,
            enlarged: tokens,
            kernel: 1,
            stride: 1,
            padding: 0,
        }
    }

    /// Rows of the output.
    pub fn output(self) -> usize {
        self.known(self.enlarged + 2 * self.padding)
    }

    /// Outputs that so many rows of the enlarged input with its zeros give.
    fn known(self, padded: usize) -> usize {
        match padded.checked_sub(self.kernel) {
            Some(beyond) => beyond / self.stride.max(1) + 1,
            None => 0,
        }
    }

    /// `number` bands of about as many rows each.
    ///
    /// # Errors
    /// [`Error::Bands`] for none, or more than there are rows.
    pub fn bands(self, number: usize) -> Result<Vec<Band>> {
        let rows = self.input;
        if !(1..=rows).contains(&number) {
            return Err(Error::Bands { number, rows });
        }
        let (twice, mut first) = (self.enlarged > rows, 0);
        let bands = (0..number).map(|i| {
            let input = i * rows / number..(i + 1) * rows / number;
            let there = match twice {
                true => (2 * input.end).min(self.enlarged),
                false => input.end,
            };
            let last = input.end == rows;
            let below = if last { self.padding } else { 0 };
            let known = self.known(there + self.padding + below);
            // Rows are computed by twos: what would be the first of two waits for the next band.
            let known = match last || self.kernel == 1 {
                true => known,
                false => known & !1,
            };
            let output = first..known.max(first);
            first = output.end;
            Band { input, output }
        });
        Ok(bands.collect())
    }

    /// What the `output` rows are made of.
    pub fn needed(self, output: &Range<usize>) -> Needed {
        let start = output.start * self.stride;
        let end = (output.end * self.stride + self.kernel).saturating_sub(self.stride);
        let above = self.padding.saturating_sub(start);
        let [start, end] = [start, end].map(|row| row.saturating_sub(self.padding));
        let below = end.saturating_sub(self.enlarged);
        let end = end.min(self.enlarged).max(start);
        let input = match self.enlarged > self.input {
            true => start / 2..end.div_ceil(2),
            false => start..end,
        };
        let skipped = match self.enlarged > self.input {
            true => start - 2 * input.start,
            false => 0,
        };
        Needed {
            input,
            enlarged: [skipped, end - start],
            zeros: [above, below],
        }
    }
}

/// A tensor of rows in planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// Number of planes.
    pub number: usize,
    /// Rows of each.
    pub rows: usize,
    /// Values of a row.
    pub width: usize,
}

impl Planes {
    /// Number of values.
    pub fn values(self) -> usize {
        self.number * self.rows * self.width
    }

    /// Number of values of so many rows of all planes.
    pub fn values_of(self, rows: &Range<usize>) -> usize {
        self.number * rows.len() * self.width
    }

    /// Where these rows of a plane are in it.
    fn of_plane(self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.width..rows.end * self.width
    }

    /// The `rows` of `all`, `[planes, rows, width]`.
    pub fn take<T: Copy + Default>(self, all: &[T], rows: &Range<usize>) -> Vec<T> {
        self.take_as(all, rows, [0, 0], |value| value)
    }

    /// The same, each value by `map`, with so many rows of `zeros` above and below in each plane.
    pub fn take_as<T: Copy, U: Copy + Default>(
        self,
        all: &[T],
        rows: &Range<usize>,
        zeros: [usize; 2],
        map: impl Fn(T) -> U,
    ) -> Vec<U> {
        let [above, below] = zeros.map(|rows| rows * self.width);
        let more = self.number * (above + below);
        let mut some = Vec::with_capacity(self.values_of(rows) + more);
        for plane in all.chunks((self.rows * self.width).max(1)) {
            some.resize(some.len() + above, U::default());
            let rows = &plane[self.of_plane(rows)];
            some.extend(rows.iter().map(|value| map(*value)));
            some.resize(some.len() + below, U::default());
        }
        some
    }

    /// Puts `some` as the `rows` of `all`.
    pub fn put<T: Copy>(self, all: &mut [T], rows: &Range<usize>, some: &[T]) {
        let planes = all.chunks_mut((self.rows * self.width).max(1));
        let len = (rows.len() * self.width).max(1);
        for (plane, some) in planes.zip(some.chunks(len)) {
            plane[self.of_plane(rows)].copy_from_slice(some);
        }
    }

    /// `some` rows of all planes, which are those that are `needed`, as a kernel meets them: `enlarged` to so many columns, and
    /// to twice the rows, and with zeros above and below.
    pub fn padded<T: Copy + Default>(
        self,
        some: &[T],
        needed: &Needed,
        enlarged: Option<usize>,
    ) -> (Self, Vec<T>) {
        let ([skipped, len], [above, below]) = (needed.enlarged, needed.zeros);
        let (width, twice) = (enlarged.unwrap_or(self.width), enlarged.is_some());
        let zeros = |rows| std::iter::repeat_n(T::default(), rows * width);
        let padded = Self {
            number: self.number,
            rows: above + len + below,
            width,
        };
        let mut all = Vec::with_capacity(padded.values());
        for plane in some.chunks((self.rows * self.width).max(1)) {
            all.extend(zeros(above));
            for row in skipped..skipped + len {
                let row = if twice { row / 2 } else { row };
                let row = &plane[row * self.width..][..self.width];
                match twice {
                    true => all.extend((0..width).map(|column| row[column / 2])),
                    false => all.extend_from_slice(row),
                }
            }
            all.extend(zeros(below));
        }
        (padded, all)
    }

    /// Bytes of the bands of these `rows`, of words of `bits` bits, one after the other; none where no memory holds them.
    pub fn bytes(self, rows: impl IntoIterator<Item = Range<usize>>, bits: u32) -> Option<usize> {
        let each = rows.into_iter();
        let each = each.map(|rows| bytes(self.values_of(&rows), bits));
        each.sum()
    }

    /// `words` as bands of these `rows`, one after the other, each packed by itself.
    ///
    /// # Errors
    /// As [`crate::pack::pack`].
    pub fn pack(
        self,
        words: &[i32],
        rows: impl IntoIterator<Item = Range<usize>>,
        bits: u32,
    ) -> Result<Vec<u8>> {
        let mut packed = Vec::new();
        for rows in rows {
            let mut packer = Packer::new(self.values_of(&rows), bits)?;
            for plane in words.chunks((self.rows * self.width).max(1)) {
                packer.add(&plane[self.of_plane(&rows)], |word| *word);
            }
            packed.append(&mut packer.packed());
        }
        Ok(packed)
    }

    /// Puts the first bytes of `packed`, a band of these `rows`, where they belong in `words`, which are made as many as there
    /// are; gives what follows them.
    ///
    /// # Errors
    /// As [`crate::pack::unpack`].
    pub fn unpack<'a>(
        self,
        words: &mut Vec<i32>,
        rows: &Range<usize>,
        packed: &'a [u8],
        bits: u32,
    ) -> Result<&'a [u8]> {
        let values = self.values_of(rows);
        let len = bytes(values, bits).map_or(packed.len(), |len| len.min(packed.len()));
        let (band, rest) = packed.split_at(len);
        let mut band = Unpacker::new(band, values, bits)?;
        words.resize(self.values(), 0);
        for plane in words.chunks_mut((self.rows * self.width).max(1)) {
            band.fill(&mut plane[self.of_plane(rows)]);
        }
        Ok(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(input: usize, enlarged: usize, stride: usize) -> Rows {
        Rows {
            input,
            enlarged,
            kernel: 3,
            stride,
            padding: 1,
        }
    }

    #[test]
    fn an_output_waits_for_the_row_below_it() {
        let bands = rows(8, 8, 1).bands(2).unwrap();
        assert_eq!(
            (bands[0].input.clone(), bands[0].output.clone()),
            (0..4, 0..2)
        );
        assert_eq!(
            (bands[1].input.clone(), bands[1].output.clone()),
            (4..8, 2..8)
        );
        let needed = rows(8, 8, 1).needed(&(2..8));
        assert_eq!(needed.input, 1..8);
        assert_eq!(needed.zeros, [0, 1]);
    }

    /// Rows of a column of numbers, convolved as a whole and by bands: of all kinds of layers, in all numbers of bands.
    #[test]
    fn bands_give_every_output_once_and_what_the_whole_gives() {
        for (input, enlarged, stride, kernel) in [
            (8, 8, 1, 3),
            (7, 13, 1, 3),
            (7, 14, 1, 3),
            (9, 9, 2, 3),
            (8, 8, 2, 3),
            (6, 6, 1, 1),
            (1, 1, 1, 3),
            (5, 5, 1, 5),
        ] {
            let rows = Rows {
                input,
                enlarged,
                kernel,
                stride,
                padding: kernel / 2,
            };
            let x: Vec<i64> = (0..input as i64).map(|i| i * i + 3).collect();
            let enlarge = |x: &[i64]| -> Vec<i64> {
                let each = x.iter().flat_map(|x| [*x, *x]);
                if enlarged > input {
                    each.collect()
                } else {
                    x.to_vec()
                }
            };
            let convolve = |padded: &[i64]| -> Vec<i64> {
                let windows = padded.windows(kernel).step_by(stride);
                let sum = |w: &[i64]| w.iter().enumerate().map(|(i, w)| (i as i64 + 1) * w).sum();
                windows.map(sum).collect()
            };
            let zeros = |n: usize| vec![0; n];
            let whole = &enlarge(&x)[..enlarged];
            let whole = [&zeros(rows.padding), whole, &zeros(rows.padding)].concat();
            let whole = convolve(&whole);
            assert_eq!(whole.len(), rows.output());
            for number in 1..=input {
                let mut got = Vec::new();
                for band in rows.bands(number).unwrap() {
                    assert_eq!(band.output.start, got.len());
                    if band.output.is_empty() {
                        continue;
                    }
                    let needed = rows.needed(&band.output);
                    assert!(needed.input.end <= band.input.end, "{rows:?} {band:?}");
                    let [skipped, len] = needed.enlarged;
                    let some = enlarge(&x[needed.input.clone()]);
                    let some = &some[skipped..skipped + len];
                    let [above, below] = needed.zeros.map(zeros);
                    got.extend(convolve(&[&above, some, &below].concat()));
                }
                assert_eq!(got, whole, "{rows:?} in {number}");
            }
        }
    }

    #[test]
    fn words_come_back_from_their_bands() {
        let planes = Planes {
            number: 3,
            rows: 5,
            width: 7,
        };
        let words: Vec<i32> = (0..planes.values() as i32)
            .map(|i| i * 37 % 512 - 256)
            .collect();
        for number in 1..=5 {
            let bands = Rows::of_tokens(5).bands(number).unwrap();
            let ranges = || bands.iter().map(|band| band.input.clone());
            let packed = planes.pack(&words, ranges(), 10).unwrap();
            assert_eq!(packed.len(), planes.bytes(ranges(), 10).unwrap());
            let (mut got, mut rest) = (vec![0; words.len()], &packed[..]);
            for rows in ranges() {
                rest = planes.unpack(&mut got, &rows, rest, 10).unwrap();
            }
            assert!(rest.is_empty() && got == words, "{number} bands");
            // A byte less is not read as if it were there.
            let short = &packed[..packed.len() - 1];
            let mut rest = Ok(short);
            for rows in ranges() {
                rest = rest.and_then(|rest| planes.unpack(&mut got, &rows, rest, 10));
            }
            assert!(rest.is_err());
        }
    }

    #[test]
    fn rows_are_enlarged_and_have_zeros_around() {
        let planes = Planes {
            number: 2,
            rows: 2,
            width: 2,
        };
        let needed = Needed {
            input: 0..2,
            enlarged: [1, 2],
            zeros: [1, 0],
        };
        let some = [1, 2, 3, 4, 5, 6, 7, 8];
        let (padded, all) = planes.padded(&some, &needed, Some(3));
        assert_eq!((padded.number, padded.rows, padded.width), (2, 3, 3));
        let want = [[0, 0, 0, 1, 1, 2, 3, 3, 4], [0, 0, 0, 5, 5, 6, 7, 7, 8]];
        assert_eq!(all, want.concat());
    }

    #[test]
    fn no_band_and_more_than_rows_are_refused() {
        for number in [0, 9, usize::MAX] {
            let error = rows(8, 8, 1).bands(number).unwrap_err().to_string();
            assert!(error.contains("8 rows"), "{error}");
        }
    }
}
