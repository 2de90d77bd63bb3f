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

    /// A matrix `[D_out, D_in]` by input, `[D_in, D_out]`; any other tensor as it is.
    pub fn by_input(self) -> Self {
        let [outputs, inputs] = self.shape[..] else {
            return self;
        };
        Self {
            shape: vec![inputs, outputs],
            data: transpose_each(&self.data, outputs, inputs),
        }
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
        match all_finite(&self.data) {
            true => Ok(()),
            false => Err(Error::NotFinite { name: name.into() }),
        }
    }
}

/// Whether every value is finite.
pub fn all_finite(values: &[f32]) -> bool {
    // Each chunk to its end: with a way out in its midst the loop would take one value at a time.
    let finite = |chunk: &[f32]| chunk.iter().fold(true, |all, x| all & x.is_finite());
    values.chunks(4096).all(finite)
}

/// Rows that [`transpose_band`] turns at once: few pieces of memory are written, and each is long.
pub const BAND: usize = 256;

/// Each `rows` x `columns` matrix of `values` transposed.
pub fn transpose_each(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    let size = (rows * columns).max(1);
    for (from, to) in values.chunks_exact(size).zip(out.chunks_exact_mut(size)) {
        for (i, band) in from.chunks((BAND * columns).max(1)).enumerate() {
            transpose_band(band, columns, to, rows, i * BAND);
        }
    }
    out
}

/// Writes the rows `first..` of a `rows` x `columns` matrix, of which `band` has [`BAND`] or fewer, to where they belong in
/// the transposed matrix `to`.
pub fn transpose_band(band: &[f32], columns: usize, to: &mut [f32], rows: usize, first: usize) {
    /// Columns at once: as many values as a line of the cache has.
    const COLUMNS: usize = 16;
    let height = band.len() / columns.max(1);
    // Rows of a large matrix may all want the same place in the cache; of a copy they do not.
    let mut tile = [[0.0; BAND]; COLUMNS];
    for left in (0..columns).step_by(COLUMNS) {
        let width = COLUMNS.min(columns - left);
        for (i, row) in band.chunks_exact(columns).enumerate() {
            for (column, value) in tile.iter_mut().zip(&row[left..left + width]) {
                column[i] = *value;
            }
        }
        for (i, column) in tile[..width].iter().enumerate() {
            let at = (left + i) * rows + first;
            to[at..at + height].copy_from_slice(&column[..height]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_matrix_is_turned_whatever_its_sides() {
        for (rows, columns) in [
            (1, 1),
            (BAND, 16),
            (BAND + 3, 37),
            (2 * BAND + 1, 15),
            (5, 700),
        ] {
            let values: Vec<f32> = (0..2 * rows * columns).map(|i| i as f32).collect();
            let turned = transpose_each(&values, rows, columns);
            for (i, value) in values.iter().enumerate() {
                let (matrix, row, column) = (i / (rows * columns), i / columns % rows, i % columns);
                let at = matrix * rows * columns + column * rows + row;
                assert_eq!(turned[at], *value, "{rows}x{columns}: {i}");
            }
            assert_eq!(transpose_each(&turned, columns, rows), values);
        }
        for (rows, columns) in [(0, 3), (3, 0), (0, 0)] {
            assert!(transpose_each(&[], rows, columns).is_empty());
        }
    }

    #[test]
    fn one_value_that_is_not_finite_is_found_anywhere() {
        let mut values = vec![f32::MAX; 9000];
        assert!(all_finite(&values) && all_finite(&[]));
        for at in [0, 1, 4095, 4096, 8999] {
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let was = std::mem::replace(&mut values[at], odd);
                assert!(!all_finite(&values), "{odd} at {at}");
                values[at] = was;
            }
        }
    }
}
