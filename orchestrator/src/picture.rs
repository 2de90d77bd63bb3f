//! A picture, from the decoder's output to a PNG file.

use std::path::Path;

use lacuna_wire::HostTensor;

use crate::error::{Error, Result};
use crate::output::write_whole;

/// A picture in RGB, opaque or not.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Values in 0..1, `[3, height, width]`.
    pub rgb: Vec<f32>,
    /// Opacity in 0..1, `[height, width]`, where the decoder gives one.
    pub alpha: Option<Vec<f32>>,
}

impl Picture {
    /// The decoder's `[1, C, height, width]` in about -1..1, clamped. As the reference's library for
    /// pictures has it, one channel is grey, two are grey and opacity, three RGB, four RGB and opacity.
    ///
    /// # Errors
    /// [`Error::Request`] when it is not one such picture, or not finite.
    pub fn from_decoded(decoded: HostTensor) -> Result<Self> {
        let [1, channels @ 1..=4, height, width] = decoded.dims()? else {
            return Err(Error::Request(format!(
                "the decoder gives {:?}, not one picture of 1 to 4 channels",
                decoded.shape
            )));
        };
        decoded.check_finite("the picture")?;
        let values = decoded.data.into_iter();
        let mut rgb: Vec<f32> = values.map(|x| (x / 2.0 + 0.5).clamp(0.0, 1.0)).collect();
        let alpha = channels
            .is_multiple_of(2)
            .then(|| rgb.split_off((channels - 1) * height * width));
        if channels < 3 {
            rgb = rgb.repeat(3);
        }
        Ok(Self {
            width,
            height,
            rgb,
            alpha,
        })
    }

    /// Bytes in rows of pixels; halves round to even, as numpy does.
    pub fn to_rgb8(&self) -> Vec<u8> {
        let pixels = self.width * self.height;
        let value = |i: usize, channel: usize| byte(self.rgb[channel * pixels + i]);
        (0..pixels)
            .flat_map(|i| (0..3).map(move |c| value(i, c)))
            .collect()
    }

    /// Bytes in rows of pixels, as [`Self::to_rgb8`], with their opacity where there is one.
    fn to_png8(&self) -> (png::ColorType, Vec<u8>) {
        let rgb = self.to_rgb8();
        let Some(alpha) = &self.alpha else {
            return (png::ColorType::Rgb, rgb);
        };
        let pixels = rgb.as_chunks::<3>().0.iter().zip(alpha);
        let rgba = pixels.flat_map(|(&[r, g, b], a)| [r, g, b, byte(*a)]);
        (png::ColorType::Rgba, rgba.collect())
    }

    /// Writes a PNG with `text` as international text chunks (keyword, text).
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn write_png(&self, path: &Path, text: &[(&str, String)]) -> Result<()> {
        let size = [self.width, self.height];
        let (color, samples) = self.to_png8();
        let bytes = encode_png(size, color, &samples, text);
        let bytes = bytes.map_err(|e| Error::Output {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        write_whole(path, &bytes)
    }
}

/// A value in 0..1 as a byte.
fn byte(value: f32) -> u8 {
    (value * 255.0).round_ties_even() as u8
}

/// A PNG file of `width` x `height` pixels of 8 bits a channel, with `text` as international text chunks
/// (keyword, text).
///
/// # Errors
/// The encoder's, when the bytes are not as many as the pixels need.
pub fn encode_png(
    [width, height]: [usize; 2],
    color: png::ColorType,
    samples: &[u8],
    text: &[(&str, String)],
) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in text {
        encoder.add_itxt_chunk((*keyword).to_owned(), text.clone())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(samples)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_clamped_and_rounded_and_interleaved() {
        let data = vec![-3.0, 1.0, 0.0, 3.0, -1.0, 0.5];
        let decoded = HostTensor::new([1, 3, 1, 2], data).unwrap();
        let picture = Picture::from_decoded(decoded).unwrap();
        // 0.5 * 255 = 127.5 rounds to the even 128; 0.75 * 255 = 191.25.
        assert_eq!(picture.to_rgb8(), [0, 128, 0, 255, 255, 191]);
    }

    #[test]
    fn channels_are_grey_or_colours_and_opacity() {
        let png8 = |channels: usize| {
            let data = [-1.0, 1.0, 0.2, -0.6][..channels].to_vec();
            let decoded = HostTensor::new([1, channels, 1, 1], data).unwrap();
            Picture::from_decoded(decoded).map(|picture| picture.to_png8())
        };
        use png::ColorType::{Rgb, Rgba};
        assert_eq!(png8(1).unwrap(), (Rgb, vec![0, 0, 0]));
        assert_eq!(png8(2).unwrap(), (Rgba, vec![0, 0, 0, 255]));
        assert_eq!(png8(3).unwrap(), (Rgb, vec![0, 255, 153]));
        assert_eq!(png8(4).unwrap(), (Rgba, vec![0, 255, 153, 51]));
        let five = HostTensor::new([1, 5, 1, 1], vec![0.0; 5]).unwrap();
        assert!(Picture::from_decoded(five).is_err());
    }

    #[test]
    fn the_file_is_a_png_that_carries_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.png");
        let picture = Picture {
            width: 2,
            height: 1,
            rgb: vec![0.0, 1.0, 0.2, 0.4, 1.0, 0.0],
            alpha: None,
        };
        picture
            .write_png(&path, &[("prompt", "a café".into())])
            .unwrap();
        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; 6];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, picture.to_rgb8());
        let chunk = &reader.info().utf8_text[0];
        assert_eq!(
            (chunk.keyword.as_str(), chunk.get_text().unwrap().as_str()),
            ("prompt", "a café")
        );
    }
}
