//! The example configs describe the published models: their U-Nets have the published number of
//! parameters.

use std::path::Path;

use lacuna_model::unet::UNetConfig;
use lacuna_model::weights;

fn parameters(model: &str) -> usize {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/models");
    let path = models.join(model).join("unet/config.json");
    let unet = UNetConfig::from_file(&path).unwrap().build();
    let sizes = weights::list(&unet)
        .into_iter()
        .map(|p| p.shape.iter().product::<usize>());
    sizes.sum()
}

#[test]
fn sd15_has_860_million_parameters() {
    assert_eq!(parameters("sd15"), 859_520_964);
}

#[test]
fn sdxl_has_2567_million_parameters() {
    assert_eq!(parameters("sdxl"), 2_567_463_684);
}
