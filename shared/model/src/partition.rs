//! Cutting a tensor into strips of rows, and putting strips together.

use std::ops::Range;

use lacuna_wire::{Error, HostTensor, Result};

use crate::layers::Conv2d;

/// `rows` rows cut into `n` contiguous strips whose sizes differ by at most one; some are empty
/// when there are fewer rows than strips.
pub fn strips(rows: usize, n: usize) -> Vec<Range<usize>> {
    (0..n).map(|i| i * rows / n..(i + 1) * rows / n).collect()
}

/// The levels of a U-Net over latents of some rows: level 0 has them all, each further one half as
/// many, rounded up.
///
/// A strip is cut at the coarsest level and scaled up, so that it holds the same part of the
/// picture at every level and a worker's features never need rows that it has not computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    rows: Vec<usize>,
}

impl Levels {
    /// `levels` levels (at least one) over `rows` rows.
    pub fn new(rows: usize, levels: usize) -> Self {
        let halve = |rows: &usize| Some(rows.div_ceil(2));
        Self {
            rows: std::iter::successors(Some(rows), halve)
                .take(levels.max(1))
                .collect(),
        }
    }

    /// Number of levels.
    pub fn count(&self) -> usize {
        self.rows.len()
    }

    /// Rows of a level; none of a level that there is not.
    pub fn rows(&self, level: usize) -> usize {
        self.rows.get(level).copied().unwrap_or(0)
    }

    /// Rows of the coarsest level.
    pub fn coarsest(&self) -> usize {
        self.rows(self.count() - 1)
    }

    /// The rows at `level` of a strip of the coarsest level.
    pub fn scale(&self, strip: &Range<usize>, level: usize) -> Range<usize> {
        let factor = 1 << (self.count() - 1).saturating_sub(level);
        let end = self.rows(level);
        (strip.start * factor).min(end)..(strip.end * factor).min(end)
    }
}

/// The input rows that PPIDM sends for the output rows `out` of a convolution: each output's
/// centre rows and `padding` more on either side. Rows outside the picture are zeros.
pub fn rows_with_halo(layer: &Conv2d, out: &Range<usize>) -> Range<isize> {
    let first = (out.start * layer.stride) as isize - layer.padding as isize;
    let last = (out.end * layer.stride) as isize + layer.padding as isize;
    first..last
}

/// Which axis of a tensor the rows of the picture run along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// `[B, C, H, W]`: the third axis.
    OfFeature,
    /// `[B, T, C]`: the second axis, one token a row.
    OfTokens,
}

impl Rows {
    fn axis(self) -> usize {
        match self {
            Self::OfFeature => 2,
            Self::OfTokens => 1,
        }
    }
}

/// A copy of the rows `range`; those outside the tensor are zeros.
///
/// # Errors
/// [`Error::WrongShape`] when the tensor lacks the axis.
pub fn cut(x: &HostTensor, axis: Rows, range: &Range<isize>) -> Result<HostTensor> {
    let (outer, rows, inner) = split(x, axis)?;
    let wanted = (range.end - range.start).max(0) as usize;
    let mut shape = x.shape.clone();
    shape[axis.axis()] = wanted;
    let inside =
        range.start.clamp(0, rows as isize) as usize..range.end.clamp(0, rows as isize) as usize;
    let zeros_before = (inside.start as isize - range.start) as usize * inner;
    let mut data = Vec::with_capacity(outer * wanted * inner);
    for plane in 0..outer {
        let end = data.len() + wanted * inner;
        data.resize(data.len() + zeros_before.min(wanted * inner), 0.0);
        let base = plane * rows;
        if !inside.is_empty() {
            data.extend_from_slice(
                &x.data[(base + inside.start) * inner..(base + inside.end) * inner],
            );
        }
        data.resize(end, 0.0);
    }
    HostTensor::new(shape, data)
}

/// Strips, in order, as one tensor.
///
/// # Errors
/// [`Error::WrongShape`] when they differ in anything but their rows, or there is none.
pub fn join(strips: &[HostTensor], axis: Rows) -> Result<HostTensor> {
    let Some(first) = strips.first() else {
        return Err(Error::WrongShape {
            name: "strips to join".into(),
            want: vec![1],
            got: vec![0],
        });
    };
    let mut shape = first.shape.clone();
    shape[axis.axis()] = 0;
    let mut parts = Vec::with_capacity(strips.len());
    for strip in strips {
        let (outer, rows, inner) = split(strip, axis)?;
        let mut same = strip.shape.clone();
        same[axis.axis()] = shape[axis.axis()];
        if same != shape {
            return Err(Error::WrongShape {
                name: "a strip".into(),
                want: first.shape.clone(),
                got: strip.shape.clone(),
            });
        }
        shape[axis.axis()] += rows;
        parts.push((outer, rows * inner, &strip.data));
    }
    let mut data = Vec::with_capacity(shape.iter().product());
    for plane in 0..parts[0].0 {
        for (_, len, strip) in &parts {
            data.extend_from_slice(&strip[plane * len..(plane + 1) * len]);
        }
    }
    HostTensor::new(shape, data)
}

/// Sizes before, along and after the rows' axis.
fn split(x: &HostTensor, axis: Rows) -> Result<(usize, usize, usize)> {
    let axis = axis.axis();
    if x.shape.len() <= axis {
        return Err(Error::WrongShape {
            name: "a tensor with rows".into(),
            want: vec![axis + 1],
            got: x.shape.clone(),
        });
    }
    Ok((
        x.shape[..axis].iter().product(),
        x.shape[axis],
        x.shape[axis + 1..].iter().product(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(shape: [usize; 4]) -> HostTensor {
        let len = shape.iter().product::<usize>();
        HostTensor::new(shape, (0..len).map(|i| i as f32 + 1.0).collect()).unwrap()
    }

    #[test]
    fn strips_cover_every_row_once() {
        for rows in 0..20 {
            for n in 1..=16 {
                let strips = strips(rows, n);
                assert_eq!(strips.len(), n);
                let all: Vec<usize> = strips.into_iter().flatten().collect();
                assert_eq!(all, (0..rows).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn strips_align_at_every_level() {
        for rows in 1..70 {
            for count in 1..5 {
                let levels = Levels::new(rows, count);
                for n in 1..=levels.coarsest() {
                    for level in 0..count {
                        let at = |strip: &Range<usize>| levels.scale(strip, level);
                        let cuts: Vec<Range<usize>> =
                            strips(levels.coarsest(), n).iter().map(at).collect();
                        assert!(cuts.iter().all(|strip| !strip.is_empty()));
                        let all: Vec<usize> = cuts.iter().cloned().flatten().collect();
                        assert_eq!(all, (0..levels.rows(level)).collect::<Vec<_>>());
                        if level > 0 {
                            // Halving a strip's rows gives the strip's rows.
                            let finer = strips(levels.coarsest(), n);
                            let finer = finer.iter().map(|s| levels.scale(s, level - 1));
                            for (fine, coarse) in finer.zip(cuts) {
                                assert_eq!(fine.start, 2 * coarse.start);
                                assert_eq!(fine.end.div_ceil(2), coarse.end);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_outside_the_picture_are_zeros() {
        let x = numbered([1, 2, 3, 1]);
        let top = cut(&x, Rows::OfFeature, &(-1..2)).unwrap();
        assert_eq!(top.shape, [1, 2, 3, 1]);
        assert_eq!(top.data, [0.0, 1.0, 2.0, 0.0, 4.0, 5.0]);
        let bottom = cut(&x, Rows::OfFeature, &(2..5)).unwrap();
        assert_eq!(bottom.data, [3.0, 0.0, 0.0, 6.0, 0.0, 0.0]);
        let beyond = cut(&x, Rows::OfFeature, &(-3..-1)).unwrap();
        assert_eq!(beyond.data, [0.0; 4]);
    }

    #[test]
    fn joined_strips_are_the_tensor() {
        let x = numbered([2, 3, 7, 5]);
        for axis in [Rows::OfFeature, Rows::OfTokens] {
            for n in [1, 2, 3, 4, 9] {
                let parts: Vec<HostTensor> = strips(x.shape[axis.axis()], n)
                    .into_iter()
                    .map(|r| cut(&x, axis, &(r.start as isize..r.end as isize)).unwrap())
                    .collect();
                assert_eq!(join(&parts, axis).unwrap(), x);
            }
        }
    }

    #[test]
    fn strips_of_different_tensors_do_not_join() {
        let error = join(
            &[numbered([1, 2, 3, 4]), numbered([1, 2, 3, 5])],
            Rows::OfFeature,
        );
        assert!(matches!(error, Err(Error::WrongShape { .. })));
    }

    #[test]
    fn a_strip_of_outputs_needs_its_inputs_and_a_row_on_each_side() {
        let same = Conv2d::same("c", 1, 1, 3);
        assert_eq!(rows_with_halo(&same, &(0..4)), -1..5);
        let halving = Conv2d { stride: 2, ..same };
        assert_eq!(rows_with_halo(&halving, &(2..4)), 3..9);
    }
}
