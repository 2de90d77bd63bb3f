//! Where the workers sit: which rows each holds, at every level.

use std::ops::Range;

use lacuna_model::partition::{Levels, strips};
use lacuna_model::survey::PROMPT_TOKENS;
use lacuna_model::unet::UNet;
use lacuna_protocol::exchange::{Assignment, Seat};
use lacuna_protocol::placement::{Prompt, SelfAttention, Tile};
use lacuna_protocol::session::SessionKind;

use super::layout::Layout;
use crate::error::Result;
use crate::fleet::Fleet;
use crate::fleet::config::FleetConfig;
use crate::fleet::tally::Seen;

/// Opens a session on every worker of `config`, each with its strip.
///
/// # Errors
/// [`lacuna_model::Error::TooManyStrips`]; as [`Fleet::open`].
pub async fn open(
    config: &FleetConfig,
    digest: &str,
    unet: &UNet,
    layout: &Layout,
) -> Result<Fleet> {
    let assignments = assignments(unet, layout, config.workers.len())?;
    let kind = |worker: usize| SessionKind::Strip(assignments[worker].clone());
    Fleet::open(config, digest, kind, layout.lane_count()).await
}

/// What each of `workers` workers is told of its place when a session opens.
///
/// # Errors
/// [`lacuna_model::Error::TooManyStrips`].
pub fn assignments(unet: &UNet, layout: &Layout, workers: usize) -> Result<Vec<Assignment>> {
    let [batch, rows, columns] = layout.of_lane().latents;
    let levels = Levels::new(rows, unet.levels());
    let strips = cut_strips(&levels, workers)?.into_iter();
    // How long a hidden prompt is, is hidden too: only who gets the prompt needs to know.
    let tokens = match layout.placement.prompt {
        Prompt::Shared => layout.tokens,
        Prompt::Hidden => PROMPT_TOKENS,
    };
    let assign = |(strip, tile)| Assignment {
        batch,
        rows,
        columns,
        strip,
        tokens,
        placement: layout.placement,
        tile,
    };
    Ok(strips.zip(Tile::grid(workers)).map(assign).collect())
}

/// What each of `workers` workers will be shown.
///
/// # Errors
/// [`lacuna_model::Error::TooManyStrips`].
pub fn seen(unet: &UNet, layout: &Layout, workers: usize) -> Result<Vec<Seen>> {
    let [_, rows, _] = layout.latents;
    let levels = Levels::new(rows, unet.levels());
    let attentions = layout.placement.self_attention;
    let tiled = attentions
        .of_levels(levels.count())
        .contains(&SelfAttention::Tiled);
    let see = |(strip, tile): (&Range<usize>, Tile)| {
        let mut seen = Seen::default();
        for level in 0..levels.count() {
            seen.add_strip(&levels.scale(strip, level), levels.rows(level));
        }
        if tiled {
            seen.add_tile(tile);
        }
        seen
    };
    let strips = cut_strips(&levels, workers)?;
    Ok(strips.iter().zip(Tile::grid(workers)).map(see).collect())
}

/// Each worker's rows of the coarsest level.
///
/// # Errors
/// [`lacuna_model::Error::TooManyStrips`] when there are not enough.
pub fn cut_strips(levels: &Levels, workers: usize) -> Result<Vec<Range<usize>>> {
    let rows = levels.coarsest();
    if workers > rows {
        return Err(lacuna_model::Error::TooManyStrips { workers, rows }.into());
    }
    Ok(strips(rows, workers))
}

/// Each worker's place at `level`.
pub fn seats(levels: &Levels, strips: &[Range<usize>], level: usize) -> Vec<Seat> {
    let tiles = Tile::grid(strips.len());
    let seat = |(strip, tile)| Seat::new(levels, strip, tile, level);
    strips.iter().zip(tiles).map(seat).collect()
}
