//! Large feature maps, a band of rows at a time: what the whole would be, in less memory.
//!
//! A convolution of a normalised map needs the map, its statistics and the output, but neither the normalised map nor a padded one
//! as a whole. And a map that is a convolution of a smaller one need not be there at all: its bands are computed when they
//! are asked for. On the CPU the result has the bits of the whole, unlike that of tiles which are decoded one by one, whose seams and colours show.

use std::ops::Range;

use burn::tensor::Tensor;
use burn::tensor::ops::PadMode;
use lacuna_kernels::stats::Moments;
use lacuna_model::device::is_cpu;
use lacuna_model::error::Result;
use lacuna_model::host::OnDevice;
use lacuna_model::layers::{Conv2d, GroupNorm};
use lacuna_model::ops;
use lacuna_model::weights::Weights;
use lacuna_wire::HostTensor;

use crate::memory;

/// No map is held that is larger, and follows from another one.
const MOST_HELD: usize = 1 << 31;

/// How large maps may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// From so many bytes on a map is computed in bands.
    pub bands: usize,
    /// From so many bytes on a map is not held that another one follows from.
    pub held: usize,
    /// About the bytes of a band.
    pub band: usize,
}

impl Bounds {
    /// As usual on the device of `weights`: where bands would go to it and back, only what may not fit is cut. While two maps are made of a third, a
    /// third of the memory that is free may be held.
    pub(super) fn of(weights: &Weights) -> Self {
        Self {
            bands: if is_cpu(weights.device()) {
                1 << 27
            } else {
                1 << 30
            },
            held: memory::available().map_or(MOST_HELD, |free| {
                (free / 3).clamp(1 << 28, MOST_HELD as u64) as usize
            }),
            band: 1 << 24,
        }
    }
}

/// A map `[1, C, H, W]` that is there, or what it is computed from.
pub(super) enum Map<'a> {
    /// The map.
    Held(Tensor<4>),
    /// A 3x3 convolution of another map, with its rows and columns doubled or not.
    Through {
        map: Tensor<4>,
        doubled: bool,
        conv: &'a Conv2d,
    },
}

/// Computes with maps that are bounded in size.
#[derive(Clone, Copy)]
pub(super) struct Bands<'a> {
    pub weights: &'a Weights,
    pub bounds: Bounds,
}

impl Map<'_> {
    /// `[B, C, H, W]`.
    fn shape(&self) -> [usize; 4] {
        match self {
            Self::Held(map) => map.dims(),
            Self::Through { map, doubled, conv } => {
                let [b, _, h, w] = map.dims();
                let times = 1 + usize::from(*doubled);
                [b, conv.c_out, times * h, times * w]
            }
        }
    }

    /// The map, where it is there.
    pub(super) fn held(&self) -> Option<&Tensor<4>> {
        match self {
            Self::Held(map) => Some(map),
            Self::Through { .. } => None,
        }
    }
}

impl<'a> Bands<'a> {
    /// `conv` of `map`, whose rows and columns are doubled before, or not; computed when it is asked for where it is too large.
    ///
    /// # Errors
    /// As [`ops::conv2d`].
    pub(super) fn through(
        self,
        map: Tensor<4>,
        doubled: bool,
        conv: &'a Conv2d,
    ) -> Result<Map<'a>> {
        let lazy = Map::Through { map, doubled, conv };
        if bytes(lazy.shape()) >= self.bounds.held {
            return Ok(lazy);
        }
        self.hold(lazy).map(Map::Held)
    }

    /// The map as a whole.
    ///
    /// # Errors
    /// As [`ops::conv2d`].
    pub(super) fn hold(self, map: Map<'_>) -> Result<Tensor<4>> {
        let shape = map.shape();
        match map {
            Map::Held(map) => Ok(map),
            Map::Through { map, doubled, conv } if !self.cuts(shape) => {
                let map = if doubled { ops::upsample2(map) } else { map };
                ops::conv2d(self.weights, conv, map)
            }
            map => self.collect(shape, 1, &map, |rows| self.rows(&map, rows)),
        }
    }

    /// `conv` (of kernel 3, or any that keeps the size) of `map`, normalised and activated before, plus `added` of each band.
    ///
    /// # Errors
    /// As [`ops::conv2d`].
    pub(super) fn normed_conv(
        self,
        map: &Map<'_>,
        norm: &GroupNorm,
        conv: &Conv2d,
        added: Option<(&Map<'_>, Option<&Conv2d>)>,
    ) -> Result<Tensor<4>> {
        let shape @ [b, _, h, w] = map.shape();
        let out = [b, conv.c_out, h, w];
        if !self.cuts(shape) {
            let x = self.rows(map, 0..h)?;
            let x = ops::group_norm(self.weights, norm, x, true)?;
            let y = ops::conv2d(self.weights, conv, x)?;
            return self.add(y, added, 0..h);
        }
        let moments = self.moments(map, norm.groups)?;
        self.collect(out, 1, map, |rows| {
            let (near, missing) = around(rows.clone(), h);
            let x = self.rows(map, near)?;
            let x = ops::group_norm_by(self.weights, norm, x, &moments, true)?;
            let odd = !rows.start.is_multiple_of(2);
            let y = ops::conv2d_of_strip(self.weights, conv, zeros(x, missing), odd)?;
            self.add(y, added, rows)
        })
    }

    /// `conv` of stride 2 of `map`, to which a row of zeros is added below and a column at the right.
    ///
    /// # Errors
    /// As [`ops::conv2d`].
    pub(super) fn halved(self, map: Tensor<4>, conv: &Conv2d) -> Result<Tensor<4>> {
        let shape @ [b, _, h, w] = map.dims();
        if !self.cuts(shape) {
            let map = map.pad((0, 1, 0, 1), PadMode::Constant(0.0));
            return ops::conv2d(self.weights, conv, map);
        }
        let map = Map::Held(map);
        let out = [b, conv.c_out, conv.out_size(h + 1), conv.out_size(w + 1)];
        self.collect(out, 2, &map, |rows| {
            let (from, to) = (2 * rows.start, 2 * rows.end + 1);
            let x = self.rows(&map, from..to.min(h))?;
            let x = x.pad((0, 1, 0, to.saturating_sub(h)), PadMode::Constant(0.0));
            ops::conv2d(self.weights, conv, x)
        })
    }

    /// `y` and these rows of what is added to it.
    fn add(
        self,
        y: Tensor<4>,
        added: Option<(&Map<'_>, Option<&Conv2d>)>,
        rows: Range<usize>,
    ) -> Result<Tensor<4>> {
        match added {
            None => Ok(y),
            Some((map, None)) => Ok(y + self.rows(map, rows)?),
            Some((map, Some(pointwise))) => {
                let x = self.rows(map, rows)?;
                Ok(y + ops::conv2d(self.weights, pointwise, x)?)
            }
        }
    }

    /// Statistics of each group.
    fn moments(self, map: &Map<'_>, groups: usize) -> Result<Vec<Moments>> {
        if let Map::Held(map) = map {
            return ops::group_moments(map.clone(), groups);
        }
        let shape @ [b, _, h, _] = map.shape();
        let mut all = vec![Moments::default(); b * groups];
        for rows in self.cut(shape, h) {
            let own = ops::group_moments(self.rows(map, rows)?, groups)?;
            all.iter_mut()
                .zip(own)
                .for_each(|(all, own)| *all = all.merge(own));
        }
        Ok(all)
    }

    /// These rows of a map.
    fn rows(self, map: &Map<'_>, rows: Range<usize>) -> Result<Tensor<4>> {
        match map {
            Map::Held(map) if rows.len() == map.dims()[2] => Ok(map.clone()),
            Map::Held(map) => Ok(map.clone().narrow(2, rows.start, rows.len())),
            Map::Through { map, doubled, conv } => {
                let height = map.dims()[2] * (1 + usize::from(*doubled));
                let (near, missing) = around(rows.clone(), height);
                let x = match doubled {
                    false => map.clone().narrow(2, near.start, near.len()),
                    true => {
                        let (from, to) = (near.start / 2, near.end.div_ceil(2));
                        let x = map.clone().narrow(2, from, to - from);
                        ops::upsample2(x).narrow(2, near.start - 2 * from, near.len())
                    }
                };
                let odd = !rows.start.is_multiple_of(2);
                ops::conv2d_of_strip(self.weights, conv, zeros(x, missing), odd)
            }
        }
    }

    /// Whether a map is computed in bands: of one picture.
    fn cuts(self, shape: [usize; 4]) -> bool {
        shape[0] == 1 && bytes(shape) >= self.bounds.bands
    }

    /// Bands of `height` rows, as many at a time as rows of a map of `shape` may be.
    fn cut(self, shape: [usize; 4], height: usize) -> impl Iterator<Item = Range<usize>> {
        let [_, c, _, w] = shape;
        let rows = self.bounds.band / bytes([1, c, 1, w]).max(1);
        let rows = rows.max(8).next_multiple_of(2);
        (0..height)
            .step_by(rows)
            .map(move |from| from..(from + rows).min(height))
    }

    /// A map of `shape` out of its bands, of each of which `stride` rows of `from` are one.
    fn collect(
        self,
        shape: [usize; 4],
        stride: usize,
        from: &Map<'_>,
        band: impl Fn(Range<usize>) -> Result<Tensor<4>>,
    ) -> Result<Tensor<4>> {
        let [_, channels, height, width] = shape;
        let [_, c, h, w] = from.shape();
        let mut out = vec![0f32; channels * height * width];
        for rows in self.cut([1, c * stride, h, w], height) {
            let values = HostTensor::from_device(band(rows.clone())?)?.data;
            let planes = out.chunks_exact_mut(height * width);
            for (plane, values) in planes.zip(values.chunks_exact(rows.len() * width)) {
                plane[rows.start * width..][..values.len()].copy_from_slice(values);
            }
        }
        HostTensor::new(shape, out)?.into_device(self.weights.device())
    }
}

/// Bytes of a map.
fn bytes(shape: [usize; 4]) -> usize {
    let values = shape.iter().fold(1usize, |n, side| n.saturating_mul(*side));
    values.saturating_mul(size_of::<f32>())
}

/// The rows with their neighbours, of `height` in all, and how many of these are missing above and below.
fn around(rows: Range<usize>, height: usize) -> (Range<usize>, [usize; 2]) {
    let near = rows.start.saturating_sub(1)..(rows.end + 1).min(height);
    let missing = [rows.start == 0, rows.end == height].map(usize::from);
    (near, missing)
}

/// Rows of zeros above and below.
fn zeros(x: Tensor<4>, [above, below]: [usize; 2]) -> Tensor<4> {
    match (above, below) {
        (0, 0) => x,
        _ => x.pad((0, 0, above, below), PadMode::Constant(0.0)),
    }
}
