//! Tensors put side by side: batch entries and channels by token, by pixel, by channel.

use lacuna_wire::HostTensor;

/// `[B, T, C]` each to `[T, all B C]`.
pub fn by_token(parts: &[HostTensor]) -> lacuna_wire::Result<HostTensor> {
    let entries = parts.iter().map(|part| {
        let [b, t, c] = part.dims()?;
        let entries = part.data.chunks_exact(t * c).take(b);
        entries
            .map(|entry| HostTensor::new([t, c], entry.to_vec()))
            .collect::<lacuna_wire::Result<Vec<_>>>()
    });
    let entries = entries.collect::<lacuna_wire::Result<Vec<_>>>()?.concat();
    side_by_side(&entries)
}

/// `[B, C, H, W]` each to `[H W, all B C]`; none of nothing.
pub fn by_pixel(parts: &[&HostTensor]) -> lacuna_wire::Result<Option<HostTensor>> {
    let mut planes: Vec<&[f32]> = Vec::new();
    let mut pixels = 0;
    for part in parts {
        let [_, _, h, w] = part.dims()?;
        pixels = h * w;
        planes.extend(part.data.chunks_exact((h * w).max(1)));
    }
    if planes.is_empty() {
        return Ok(None);
    }
    let values = (0..pixels).flat_map(|at| planes.iter().map(move |plane| plane.get(at)));
    let values: Vec<f32> = values.flatten().copied().collect();
    HostTensor::new([pixels, planes.len()], values).map(Some)
}

/// `[B, C, H, W]` each to `[1, all B C, H, W]`.
///
/// # Errors
/// [`lacuna_wire::Error::WrongShape`] when their rows or columns differ.
pub fn by_channel(parts: &[&HostTensor]) -> lacuna_wire::Result<HostTensor> {
    let mut shape = [1, 0, 0, 0];
    let mut data = Vec::with_capacity(parts.iter().map(|part| part.data.len()).sum());
    for part in parts {
        let [b, c, h, w] = part.dims()?;
        shape = [1, shape[1] + b * c, h, w];
        data.extend_from_slice(&part.data);
    }
    HostTensor::new(shape, data)
}

/// `[T, C]` each to `[T, all C]`.
pub fn side_by_side(parts: &[HostTensor]) -> lacuna_wire::Result<HostTensor> {
    let rows = parts.first().map_or(0, |part| part.shape[0]);
    let mut data = Vec::with_capacity(parts.iter().map(|part| part.data.len()).sum());
    for row in 0..rows {
        for part in parts {
            let [_, width] = part.dims()?;
            data.extend(part.data.iter().skip(row * width).take(width));
        }
    }
    let width = data.len() / rows.max(1);
    HostTensor::new([rows, width], data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_channels_come_side_by_side() {
        let x = |shape: [usize; 3], from: u8| {
            let data = (0..shape.iter().product::<usize>()).map(|i| i as f32 + f32::from(from));
            HostTensor::new(shape, data.collect()).unwrap()
        };
        let tokens = by_token(&[x([2, 2, 1], 0), x([1, 2, 2], 10)]).unwrap();
        assert_eq!(tokens.shape, [2, 4]);
        assert_eq!(tokens.data, [0.0, 2.0, 10.0, 11.0, 1.0, 3.0, 12.0, 13.0]);
        let feature = HostTensor::new([1, 2, 1, 2], vec![0.0, 1.0, 2.0, 3.0]).unwrap();
        let pixels = by_pixel(&[&feature]).unwrap().unwrap();
        assert_eq!(pixels.data, [0.0, 2.0, 1.0, 3.0]);
    }
}
