//! What can be chosen of the paper's scheme.

use std::str::FromStr;

use clap::Args;
use lacuna_model::unet::CONV_IN;

/// What can be chosen of the paper's scheme.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq)]
#[command(next_help_heading = "Scheme")]
pub struct Ppidm {
    /// ppidm: how strips' statistics become a group normalisation; all but exact lose quality
    /// [default: exact].
    #[arg(long, value_enum)]
    pub groupnorm: Option<GroupNormMode>,
    /// ppidm: which kinds of layers workers compute: conv, attention, norm, or some of them [default: all].
    #[arg(long)]
    pub offload: Option<Offload>,
    /// The share of what workers compute that is checked.
    #[arg(skip)]
    pub verify: Option<f64>,
}

/// How the strips' statistics become a group normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum GroupNormMode {
    /// Merged exactly: the statistics of the whole tensor.
    #[default]
    Exact,
    /// Each strip by its own statistics; lossy, the paper's.
    Local,
    /// All strips by the averages of their means and variances; lossy.
    Averaged,
}

/// Which kinds of layers are the workers' (Table V of the paper switches them singly).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// 3x3 convolutions but for `conv_in`.
    pub conv: bool,
    /// The products of cross-attentions.
    pub attention: bool,
    /// The statistics of group normalisations.
    pub norm: bool,
}

impl Default for Offload {
    /// All of them, as in the paper.
    fn default() -> Self {
        Self {
            conv: true,
            attention: true,
            norm: true,
        }
    }
}

impl FromStr for Offload {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut offload = Self {
            conv: false,
            attention: false,
            norm: false,
        };
        for kind in text.split(',') {
            match kind.trim() {
                "conv" => offload.conv = true,
                "attention" => offload.attention = true,
                "norm" => offload.norm = true,
                other => return Err(format!("{other:?} is none of conv, attention and norm")),
            }
        }
        Ok(offload)
    }
}

impl std::fmt::Display for Offload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = [
            (self.conv, "conv"),
            (self.attention, "attention"),
            (self.norm, "norm"),
        ];
        let names = named.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

impl Offload {
    /// Whether a convolution is the workers'. `conv_in` never is: it sees the noisy latents.
    pub fn has_conv(self, layer: &str, kernel: usize) -> bool {
        self.conv && kernel > 1 && layer != CONV_IN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_they_are_written_and_others_named() {
        let some: Offload = "norm,conv".parse().unwrap();
        assert_eq!(some.to_string(), "conv,norm");
        assert_eq!(Offload::default().to_string(), "conv,attention,norm");
        let error = "conv,self-attention".parse::<Offload>().unwrap_err();
        assert!(error.contains("\"self-attention\""), "{error}");
    }
}
