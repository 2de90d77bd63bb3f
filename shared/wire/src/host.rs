//! Tensors in host memory: what is loaded, sent and cut.

use crate::error::{Error, Result};

/// A dense row-major f32 tensor in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// `shape.iter().product()` values.
    pub data: Vec<f32>,
}

impl HostTensor {
    /// A tensor of `shape` over `data`.
    ///
    /// # Errors
    /// [`Error::WrongShape`] when the number of values is not the shape's product.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Result<Self> {
        let shape = shape.into();
        if shape.iter().product::<usize>() != data.len() {
            return Err(Error::WrongShape {
                name: "host tensor".into(),
                want: shape,
                got: vec![data.len()],
            });
        }
        Ok(Self { shape, data })
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let data = vec![0.0; shape.iter().product()];
        Self { shape, data }
    }

    /// The tensor as `n` tensors of as many batch entries (its first axis) each.
    ///
    /// # Errors
    /// [`Error::WrongShape`] when `n` does not divide the batch.
    pub fn split_batch(self, n: usize) -> Result<Vec<Self>> {
        let batch = self.shape.first().copied().unwrap_or(0);
        if n == 0 || batch == 0 || !batch.is_multiple_of(n) {
            return Err(Error::WrongShape {
                name: format!("a batch for {n}"),
                want: vec![n],
                got: self.shape,
            });
        }
        let mut shape = self.shape;
        shape[0] = batch / n;
        let parts = self.data.chunks_exact(self.data.len() / n);
        parts
            .map(|part| Self::new(shape.clone(), part.to_vec()))
            .collect()
    }

    /// Batches, in order, as one.
    ///
    /// # Errors
    /// [`Error::WrongShape`] when they differ in more than their number of entries.
    pub fn join_batch(parts: &[Self]) -> Result<Self> {
        let mut shape = parts
            .first()
            .map_or_else(Vec::new, |part| part.shape.clone());
        for part in parts {
            if part.shape.get(1..) != shape.get(1..) {
                return Err(Error::WrongShape {
                    name: "a part of a batch".into(),
                    want: shape,
                    got: part.shape.clone(),
                });
            }
        }
        if let Some(batch) = shape.first_mut() {
            *batch = parts.iter().map(|part| part.shape[0]).sum();
        }
        Self::new(
            shape,
            parts
                .iter()
                .flat_map(|part| part.data.iter().copied())
                .collect(),
        )
    }

    /// The sizes as an array.
    ///
    /// # Errors
    /// [`Error::WrongShape`] when the tensor does not have `D` axes.
    pub fn dims<const D: usize>(&self) -> Result<[usize; D]> {
        <[usize; D]>::try_from(self.shape.as_slice()).map_err(|_| Error::WrongShape {
            name: format!("a tensor of {D} axes"),
            want: vec![D],
            got: self.shape.clone(),
        })
    }

    /// The largest magnitude; zero of none.
    pub fn largest(&self) -> f64 {
        f64::from(self.data.iter().fold(0f32, |most, x| most.max(x.abs())))
    }

    /// Checks that every value is finite; `name` is what the error calls the tensor.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub fn check_finite(&self, name: &str) -> Result<()> {
        // A sum of x * 0 is 0 for finite values and NaN otherwise: one pass that vectorises.
        let poison: f32 = self
            .data
            .chunks(4096)
            .map(|c| c.iter().map(|x| x * 0.0).sum::<f32>())
            .sum();
        if poison == 0.0 {
            Ok(())
        } else {
            Err(Error::NotFinite { name: name.into() })
        }
    }
}

/// Each `rows` x `columns` matrix of `values` transposed.
pub fn transpose_each(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    let size = (rows * columns).max(1);
    // A block's rows and columns stay in the cache.
    const BLOCK: usize = 32;
    for (from, to) in values.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
        for row in (0..rows).step_by(BLOCK) {
            for column in (0..columns).step_by(BLOCK) {
                for r in row..rows.min(row + BLOCK) {
                    for c in column..columns.min(column + BLOCK) {
                        to[c * rows + r] = from[r * columns + c];
                    }
                }
            }
        }
    }
    out
}
