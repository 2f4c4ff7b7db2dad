//! The readings of both sides, one beside the other.

use crate::mesh::Side;

/// Whether more is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    More,
    Less,
}

/// What was read.
#[derive(Default)]
pub struct Table(Vec<Row>);

struct Row {
    name: String,
    better: Better,
    go: Option<f64>,
    vwire: Option<f64>,
}

impl Table {
    /// One reading of one side.
    pub fn note(&mut self, name: String, better: Better, side: Side, value: f64) {
        let row = match self.0.iter_mut().position(|row| row.name == name) {
            Some(place) => &mut self.0[place],
            None => {
                self.0.push(Row { name, better, go: None, vwire: None });
                self.0.last_mut().expect("it was just pushed")
            }
        };
        match side {
            Side::Go => row.go = Some(value),
            Side::Vwire => row.vwire = Some(value),
        }
    }

    /// As Markdown.
    pub fn print(&self) {
        println!("| | Go | vwire | how many times better |\n|---|---:|---:|---:|");
        for row in &self.0 {
            let ratio = match (row.go, row.vwire) {
                (Some(go), Some(vwire)) if go > 0.0 && vwire > 0.0 => match row.better {
                    Better::More => number(vwire / go),
                    Better::Less => number(go / vwire),
                },
                _ => "–".to_owned(),
            };
            let shown = |value: Option<f64>| value.map_or("–".to_owned(), number);
            println!("| {} | {} | {} | {ratio} |", row.name, shown(row.go), shown(row.vwire));
        }
    }
}

fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
