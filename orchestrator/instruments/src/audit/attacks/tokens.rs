//! The whole picture from everybody's keys and values, token by token.

use lacuna_wire::HostTensor;

use super::Material;
use crate::audit::corpus::Run;
use crate::audit::ridge::Linear;
use crate::error::Result;

/// Reads each token's patch of latents off its keys and values, the same map for every token.
pub struct Reader {
    linear: Linear,
    patches: Patches,
}

/// How tokens lie over latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patches {
    /// Rows of tokens.
    pub rows: usize,
    /// Columns of tokens.
    pub columns: usize,
    /// Rows, and columns, of latents to a token.
    pub side: usize,
    /// Channels of the latents.
    pub channels: usize,
}

impl Patches {
    /// Of `tokens` tokens over `latents` `[1, C, H, W]`, whose sides they divide; none where they do not.
    pub fn new(tokens: usize, latents: &HostTensor) -> Option<Self> {
        let [_, channels, h, w] = latents.dims().ok()?;
        let side = (1..=h).find(|side| (h / side) * (w / side) <= tokens)?;
        let fits = h.is_multiple_of(side) && w.is_multiple_of(side);
        let patches = Self {
            rows: h / side,
            columns: w / side,
            side,
            channels,
        };
        (fits && patches.rows * patches.columns == tokens).then_some(patches)
    }

    /// Where the values of a token's patch lie among the latents.
    pub fn of_token(self, token: usize) -> impl Iterator<Item = usize> {
        let Self {
            rows,
            columns,
            side,
            channels,
        } = self;
        let (row, column) = (token / columns * side, token % columns * side);
        let (height, width) = (rows * side, columns * side);
        let cells = move |c| (0..side * side).map(move |cell| (c, cell));
        (0..channels)
            .flat_map(cells)
            .map(move |(c, cell)| (c * height + row + cell / side) * width + column + cell % side)
    }

    /// Latents as rows of patches, `[T, C side side]`.
    ///
    /// # Errors
    /// [`lacuna_wire::Error::WrongShape`] when the latents are others.
    pub fn cut(self, latents: &HostTensor) -> lacuna_wire::Result<HostTensor> {
        let tokens = self.rows * self.columns;
        let at = (0..tokens).flat_map(|token| self.of_token(token));
        let values = at.filter_map(|at| latents.data.get(at).copied());
        HostTensor::new([tokens, self.width()], values.collect())
    }

    /// Values of a patch.
    pub fn width(self) -> usize {
        self.channels * self.side * self.side
    }
}

impl Reader {
    /// Learns from `keys` `[T, D]` of the training runs; none where tokens and latents do not fit.
    ///
    /// # Errors
    /// Those of the regression.
    pub fn learn(runs: &[Run], keys: &[HostTensor]) -> Result<Option<Self>> {
        let (Some(run), Some(first)) = (runs.first(), keys.first()) else {
            return Ok(None);
        };
        let Some(patches) = Patches::new(first.shape[0], &run.latents) else {
            return Ok(None);
        };
        let samples = runs.iter().zip(keys);
        let samples = samples.map(|(run, x)| Ok((x.clone(), patches.cut(&run.latents)?)));
        let linear = Linear::fit(&samples.collect::<Result<Vec<_>>>()?)?;
        Ok(Some(Self { linear, patches }))
    }

    /// Each token's patch, `[T, values]`.
    ///
    /// # Errors
    /// Those of the product.
    pub fn read(&self, keys: &HostTensor) -> Result<HostTensor> {
        self.linear.predict(keys)
    }

    /// How tokens lie over the latents.
    pub fn patches(&self) -> Patches {
        self.patches
    }
}

/// The held-out runs' latents `[n, C H W]` from keys and values of one step; none where the provider does not get all.
///
/// # Errors
/// Those of the regression.
pub fn attack(material: &Material<'_>, step: usize) -> Result<Option<HostTensor>> {
    let keys = material.at_step(step).into_iter().map(|v| v.keys.clone());
    let Some(keys) = keys.collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let (own, others) = keys.split_at(material.train);
    let Some(reader) = Reader::learn(&material.runs[..material.train], own)? else {
        return Ok(None);
    };
    let mut guesses = Vec::new();
    let width = material.runs[0].latents.data.len();
    for keys in others {
        let mut latents = vec![0.0; width];
        let read = reader.read(keys)?;
        let patches = read.data.chunks_exact(reader.patches.width());
        for (token, patch) in patches.enumerate() {
            let places = reader.patches.of_token(token);
            places
                .zip(patch)
                .for_each(|(at, value)| latents[at] = *value);
        }
        guesses.extend(latents);
    }
    Ok(Some(HostTensor::new([others.len(), width], guesses)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_cover_the_latents_once() {
        let latents = HostTensor::new([1, 3, 4, 6], (0..72).map(|x| x as f32).collect()).unwrap();
        let patches = Patches::new(6, &latents).unwrap();
        assert_eq!((patches.rows, patches.columns, patches.side), (2, 3, 2));
        let mut places: Vec<usize> = (0..6).flat_map(|t| patches.of_token(t)).collect();
        let cut = patches.cut(&latents).unwrap();
        assert_eq!(cut.data[..4], [0.0, 1.0, 6.0, 7.0]);
        places.sort_unstable();
        assert_eq!(places, (0..72).collect::<Vec<_>>());
        assert_eq!(Patches::new(7, &latents), None);
    }
}
