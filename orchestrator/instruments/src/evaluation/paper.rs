//! What the paper PPIDM prints of its pictures' quality: Tables IV to VII, of Stable Diffusion 1.5 and, in Table IV, of SDXL.

/// One printed table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// As the paper counts.
    pub title: &'static str,
    /// Its rows.
    pub rows: &'static [Printed],
}

/// A printed row: PSNR, SSIM, LPIPS and FID, with the digits that are printed.
#[derive(Clone, Copy, Debug)]
pub struct Printed {
    /// What it is of.
    pub label: &'static str,
    /// In the order of the columns.
    pub values: [&'static str; 4],
}

const fn row(label: &'static str, values: [&'static str; 4]) -> Printed {
    Printed { label, values }
}

/// Columns of every table.
pub const COLUMNS: [&str; 4] = ["PSNR", "SSIM", "LPIPS", "FID"];

const TABLE_4: Table = Table {
    title: "Table IV: number of workers (SD at 512x512, SDXL at 1024x1024)",
    rows: &[
        row("SD, Art, Ours-2", ["36.80", "0.968", "0.018", "4.73"]),
        row("SD, Art, Ours-4", ["36.90", "0.969", "0.017", "4.56"]),
        row("SD, Art, Ours-8", ["36.76", "0.968", "0.018", "4.74"]),
        row("SD, Coco, Ours-2", ["37.27", "0.979", "0.014", "0.159"]),
        row("SD, Coco, Ours-4", ["37.31", "0.979", "0.014", "0.159"]),
        row("SD, Coco, Ours-8", ["37.12", "0.978", "0.014", "0.164"]),
        row("SDXL, Art, Ours-2", ["39.48", "0.974", "0.014", "2.64"]),
        row("SDXL, Art, Ours-4", ["39.57", "0.975", "0.013", "2.42"]),
        row("SDXL, Art, Ours-8", ["39.77", "0.975", "0.013", "2.53"]),
        row("SDXL, Coco, Ours-2", ["38.90", "0.977", "0.014", "0.102"]),
        row("SDXL, Coco, Ours-4", ["39.15", "0.978", "0.014", "0.097"]),
        row("SDXL, Coco, Ours-8", ["39.18", "0.978", "0.014", "0.097"]),
    ],
};

const TABLE_5: Table = Table {
    title: "Table V: which layers are computed in strips (four workers)",
    rows: &[
        row("SD + Ppiconv", ["47.09", "0.993", "0.003", "1.09"]),
        row("SD + Ppiatt", ["47.19", "0.993", "0.003", "1.10"]),
        row("SD + Ppign", ["36.91", "0.968", "0.017", "4.62"]),
        row("SD + Ppiconv + Ppiatt", ["47.31", "0.994", "0.003", "0.88"]),
        row("SD + Ppiconv + Ppign", ["36.87", "0.968", "0.018", "4.69"]),
        row("SD + Ppiatt + Ppign", ["36.87", "0.968", "0.018", "4.62"]),
        row("PPIDM", ["36.90", "0.969", "0.017", "4.56"]),
    ],
};

const TABLE_6: Table = Table {
    title: "Table VI: sampler steps (four workers)",
    rows: &[
        row("30", ["37.06", "0.97", "0.017", "4.67"]),
        row("40", ["37.04", "0.969", "0.017", "4.46"]),
        row("50", ["36.90", "0.969", "0.017", "4.56"]),
        row("60", ["36.45", "0.967", "0.019", "4.74"]),
        row("70", ["36.48", "0.966", "0.019", "4.82"]),
    ],
};

const TABLE_7: Table = Table {
    title: "Table VII: size of the picture (four workers)",
    rows: &[
        row("256", ["31.42", "0.925", "0.045", "12.66"]),
        row("512", ["36.90", "0.969", "0.017", "4.56"]),
        row("768", ["38.06", "0.970", "0.019", "4.49"]),
        row("1024", ["39.08", "0.972", "0.020", "4.54"]),
    ],
};

/// The table of an experiment, by the experiment's name.
pub fn table(experiment: &str) -> Option<&'static Table> {
    match experiment {
        "table-4" => Some(&TABLE_4),
        "table-5" => Some(&TABLE_5),
        "table-6" => Some(&TABLE_6),
        "table-7" => Some(&TABLE_7),
        _ => None,
    }
}
