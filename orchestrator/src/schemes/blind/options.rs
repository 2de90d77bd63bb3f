//! What can be chosen of shares that tell nothing.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use lacuna_shares::Precision;

/// What can be chosen of shares that tell nothing; a plan chooses what is left out.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq)]
#[command(next_help_heading = "Scheme")]
pub struct Blind {
    /// blind: how many bits the numbers have that travel: paper (10/10.1), speed (12/13.1), quality (16/16.2, of two workers a group), or
    /// UP/RANGE.FRACTION: of a feature, and of a product before and behind its point [default: speed; under a policy,
    /// what it allows].
    #[arg(long, value_name = "BITS")]
    pub share_bits: Option<Bits>,
    /// blind: into how many groups the workers fall, each of which computes as many of the batch's entries; all
    /// workers of a group together see everything, any fewer of it nothing [default: 1; under a policy, what is fastest].
    #[arg(long, value_name = "N")]
    pub share_groups: Option<usize>,
    /// blind: which layers workers multiply: convs, the convolutions that keep the size of their input; all that have
    /// weights; or a number, those of at least so many operations for each number that travels [default: convs; under
    /// a policy, what is fastest].
    #[arg(long, value_name = "LAYERS")]
    pub share_layers: Option<Layers>,
    /// The share of the workers' products that is checked, if any is.
    #[arg(skip)]
    pub verify: Option<f64>,
}

/// How many bits everything has, as it is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits(pub Precision);

/// Which layers workers multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// Every convolution of more than one row and column that keeps the size of its input, also where that was enlarged
    /// before.
    Convs,
    /// Every layer that has weights, but for those that never are.
    All,
    /// Of these every one of at least so many operations for each number that travels.
    Work(u32),
}

impl Layers {
    /// What a plan tells apart: whoever computes slowly has more of them sent.
    pub const CHOICES: [Self; 8] = [
        Self::Convs,
        Self::Work(10_000),
        Self::Work(5_000),
        Self::Work(2_000),
        Self::Work(1_000),
        Self::Work(500),
        Self::Work(250),
        Self::All,
    ];
}

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "convs" => Ok(Self::Convs),
            "all" => Ok(Self::All),
            _ => text.parse().map(Self::Work).map_err(|_| {
                "none of convs, all, and no number of operations for each number that travels"
                    .into()
            }),
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Convs => f.write_str("convs"),
            Self::All => f.write_str("all"),
            Self::Work(least) => write!(f, "{least}"),
        }
    }
}

/// Bits that have a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The name.
    pub name: &'static str,
    /// The bits.
    pub precision: Precision,
    /// The least PSNR of a picture of the demo model against the uncut one that they promise, in dB.
    pub psnr: f64,
}

/// Those that there are.
pub const PRESETS: [Preset; 3] = [
    Preset {
        name: "paper",
        precision: Precision::PAPER,
        psnr: 36.9,
    },
    Preset {
        name: "speed",
        precision: Precision::SPEED,
        psnr: 50.0,
    },
    Preset {
        name: "quality",
        precision: Precision::QUALITY,
        psnr: 62.0,
    },
];

impl FromStr for Bits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(preset) = PRESETS.iter().find(|preset| preset.name == text) {
            return Ok(Self(preset.precision));
        }
        let parts = text.split_once('/').and_then(|(up, down)| {
            let (range, fraction) = down.split_once('.')?;
            let [up, range, fraction] = [up, range, fraction].map(|part| part.parse().ok());
            Some((up?, range?, fraction?))
        });
        let names = PRESETS.map(|preset| preset.name).join(", ");
        let (up, range, fraction) = parts
            .ok_or_else(|| format!("none of {names}, and not UP/RANGE.FRACTION as in 12/13.1"))?;
        let precision = Precision::new(up, range, fraction);
        precision.map(Self).map_err(|e| e.to_string())
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PRESETS.iter().find(|preset| preset.precision == self.0) {
            Some(preset) => f.write_str(preset.name),
            None => {
                let Self(precision) = self;
                let [up, range] = [precision.up(), precision.range()];
                write!(f, "{up}/{range}.{}", precision.fraction())
            }
        }
    }
}

impl Blind {
    /// How many bits everything has; what is usual where nobody chose.
    pub fn precision(&self) -> Precision {
        self.share_bits.map_or(Precision::SPEED, |bits| bits.0)
    }

    /// Which layers workers multiply; what is usual where nobody chose.
    pub fn layers(&self) -> Layers {
        self.share_layers.unwrap_or(Layers::Convs)
    }

    /// Into how many groups the workers fall; one where nobody chose.
    pub fn groups(&self) -> usize {
        self.share_groups.unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_as_they_are_written_and_others_named() {
        for text in ["paper", "speed", "quality", "11/12.1", "16/18.0"] {
            assert_eq!(text.parse::<Bits>().unwrap().to_string(), text);
        }
        assert_eq!("12/13.1".parse::<Bits>().unwrap().to_string(), "speed");
        for (text, named) in [
            ("fast", "paper, speed, quality"),
            ("12/13", "UP/RANGE.FRACTION"),
            ("a/b.c", "UP/RANGE.FRACTION"),
            ("17/13.1", "features of 17 bits; from 6 to 16"),
            ("12/99999999999999999999.1", "UP/RANGE.FRACTION"),
        ] {
            let error = text.parse::<Bits>().unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn layers_are_read_as_they_are_written() {
        for layers in Layers::CHOICES {
            assert_eq!(layers.to_string().parse::<Layers>().unwrap(), layers);
        }
        for wrong in ["most", "-1", "1.5", ""] {
            assert!(wrong.parse::<Layers>().unwrap_err().contains("convs, all"));
        }
    }
}
