//! Latents in files.

use std::path::Path;

use lacuna_model::weights::Checkpoint;
use lacuna_wire::HostTensor;

use super::input_error;
use crate::error::Result;

/// Reads latents `[n, C, H, W]` from a safetensors file: its only tensor, or the one called
/// `latents`.
///
/// # Errors
/// [`crate::Error::Input`] when there is no such tensor or it has another number of axes.
pub fn read_latents(path: &Path) -> Result<Vec<HostTensor>> {
    let file = Checkpoint::open_file(path)?;
    let names: Vec<&str> = file.names().collect();
    let name = match names.as_slice() {
        [only] => only,
        _ if names.contains(&"latents") => "latents",
        _ => {
            return Err(input_error(
                path,
                "it holds several tensors, none called latents",
            ));
        }
    };
    let all = file.read(name)?;
    let [n, c, h, w] = all.dims().map_err(|_| {
        input_error(
            path,
            format!("{name} has shape {:?}, not [n, C, H, W]", all.shape),
        )
    })?;
    if n * c * h * w == 0 {
        return Err(input_error(path, format!("{name} is empty")));
    }
    let each = all.data.chunks_exact(c * h * w);
    each.map(|data| Ok(HostTensor::new([1, c, h, w], data.to_vec())?))
        .collect()
}

/// Writes latents `[1, C, H, W]` as the tensor `latents` of a safetensors file.
///
/// # Errors
/// [`crate::Error::Output`].
pub fn write_latents(path: &Path, latents: &HostTensor) -> Result<()> {
    let bytes = lacuna_wire::to_safetensors([("latents", latents)], None)?;
    crate::output::write_whole(path, &bytes)
}
