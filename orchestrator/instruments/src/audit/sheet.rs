//! The picture page of an audit: true pictures, what a provider holds, what it recovers.

use std::ops::Range;

use super::font;
use lacuna_orchestrator::picture::Picture;

/// Pixels between cells, and around the page.
const GAP: usize = 6;
/// Pixels of a line of text.
const LINE: usize = 11;
/// The page is so many times as large, for its letters to be read.
const SCALE: usize = 2;
/// What is around the rows that a provider computes.
const OUTLINE: [f32; 3] = [0.85, 0.0, 0.1];

/// A column of the page.
pub struct Column {
    /// Lines above it.
    pub heading: [String; 2],
    /// One for each row of the page.
    pub cells: Vec<Cell>,
}

/// A picture and what is written under it.
#[derive(Clone)]
pub struct Cell {
    /// The picture.
    pub picture: Picture,
    /// A short line.
    pub caption: String,
    /// Rows that are outlined; none where there are none.
    pub outline: Range<usize>,
}

/// All columns as one picture on white.
pub fn sheet(columns: &[Column]) -> Picture {
    let cells = columns.iter().flat_map(|column| &column.cells);
    let [width, height] = cells.fold([0, 0], |[w, h], cell| {
        [w.max(cell.picture.width), h.max(cell.picture.height)]
    });
    let rows = columns.iter().map(|column| column.cells.len()).max();
    let row_height = height + LINE + GAP;
    let top = GAP + 2 * LINE;
    let mut page = Page::new(
        GAP + columns.len() * (width + GAP),
        top + rows.unwrap_or(0) * row_height + GAP,
    );
    for (at, column) in columns.iter().enumerate() {
        let left = GAP + at * (width + GAP);
        for (line, text) in column.heading.iter().enumerate() {
            page.write(text, GAP + line * LINE, left);
        }
        for (row, cell) in column.cells.iter().enumerate() {
            let y = top + row * row_height;
            page.paste(&cell.picture, y, left);
            page.outline(&cell.outline, y, left, cell.picture.width);
            page.write(&cell.caption, y + height + 2, left);
        }
    }
    enlarged(&page.picture)
}

fn enlarged(page: &Picture) -> Picture {
    let (width, height) = (SCALE * page.width, SCALE * page.height);
    let source = |at: usize| {
        let (channel, y, x) = (at / (width * height), at / width % height, at % width);
        (channel * page.height + y / SCALE) * page.width + x / SCALE
    };
    let rgb = (0..3 * width * height).map(|at| page.rgb[source(at)]);
    Picture {
        width,
        height,
        rgb: rgb.collect(),
        alpha: None,
    }
}

struct Page {
    picture: Picture,
}

impl Page {
    fn new(width: usize, height: usize) -> Self {
        let picture = Picture {
            width,
            height,
            rgb: vec![1.0; 3 * width * height],
            alpha: None,
        };
        Self { picture }
    }

    fn set(&mut self, y: usize, x: usize, rgb: [f32; 3]) {
        let Picture { width, height, .. } = self.picture;
        if x < width && y < height {
            for (channel, value) in rgb.into_iter().enumerate() {
                self.picture.rgb[(channel * height + y) * width + x] = value;
            }
        }
    }

    fn write(&mut self, text: &str, top: usize, left: usize) {
        for [y, x] in font::pixels(text) {
            self.set(top + y, left + x, [0.1; 3]);
        }
    }

    /// On the first and the last of the rows, and beside the picture.
    fn outline(&mut self, rows: &Range<usize>, top: usize, left: usize, width: usize) {
        if rows.is_empty() {
            return;
        }
        let (first, last) = (top + rows.start, top + rows.end - 1);
        let (start, end) = (left.saturating_sub(1), left + width);
        for x in start..=end {
            self.set(first, x, OUTLINE);
            self.set(last, x, OUTLINE);
        }
        for y in first..=last {
            self.set(y, start, OUTLINE);
            self.set(y, end, OUTLINE);
        }
    }

    fn paste(&mut self, picture: &Picture, top: usize, left: usize) {
        let pixels = picture.width * picture.height;
        for at in 0..pixels {
            let rgb = std::array::from_fn(|channel| picture.rgb[channel * pixels + at]);
            self.set(top + at / picture.width, left + at % picture.width, rgb);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_on_the_page() {
        let cell = |value: f32| Cell {
            picture: Picture {
                width: 8,
                height: 4,
                rgb: vec![value; 3 * 32],
                alpha: None,
            },
            caption: String::new(),
            outline: 0..0,
        };
        let column = |values: [f32; 2]| Column {
            heading: ["A".into(), String::new()],
            cells: values.map(cell).to_vec(),
        };
        let page = sheet(&[column([0.2, 0.3]), column([0.4, 0.5])]);
        for value in [0.2, 0.3, 0.4, 0.5] {
            let pixels = page.rgb.iter().filter(|x| **x == value).count();
            assert_eq!(pixels, SCALE * SCALE * 3 * 32, "{value}");
        }
        assert_eq!(page.rgb.len(), 3 * page.width * page.height);
    }

    #[test]
    fn the_rows_of_a_provider_are_outlined() {
        let cell = Cell {
            picture: Picture {
                width: 8,
                height: 8,
                rgb: vec![0.5; 3 * 64],
                alpha: None,
            },
            caption: String::new(),
            outline: 2..5,
        };
        let column = Column {
            heading: [String::new(), String::new()],
            cells: vec![cell],
        };
        let page = sheet(&[column]);
        let red = page.rgb.iter().filter(|x| **x == OUTLINE[0]).count();
        // Two rows of 8 pixels and one more at each side, and the two sides of the row between.
        assert_eq!(red, SCALE * SCALE * (2 * 10 + 2));
    }
}
