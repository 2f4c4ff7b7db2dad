//! The readings of both sides, one beside the other, in a table for each subject.

use crate::mesh::Side;

/// Whether more is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    More,
    Less,
}

/// What was read.
#[derive(Default)]
pub struct Tables {
    subject: String,
    rows: Vec<Row>,
}

struct Row {
    subject: String,
    name: String,
    better: Better,
    go: Option<f64>,
    vwire: Option<f64>,
}

impl Tables {
    /// What is read from now on is about this.
    pub fn about(&mut self, subject: &str) {
        eprintln!("-- {subject}");
        subject.clone_into(&mut self.subject);
    }

    /// One reading of one side.
    pub fn note(&mut self, name: String, better: Better, side: Side, value: f64) {
        let known = self.rows.iter().position(|row| row.subject == self.subject && row.name == name);
        let row = match known {
            Some(place) => &mut self.rows[place],
            None => {
                let subject = self.subject.clone();
                self.rows.push(Row { subject, name, better, go: None, vwire: None });
                self.rows.last_mut().expect("it was just pushed")
            }
        };
        match side {
            Side::Go => row.go = Some(value),
            Side::Vwire => row.vwire = Some(value),
        }
    }

    /// As Markdown.
    pub fn print(&self) {
        let mut subjects: Vec<&str> = Vec::new();
        for row in self.rows.iter().filter(|row| !row.subject.is_empty()) {
            if !subjects.contains(&row.subject.as_str()) {
                subjects.push(&row.subject);
            }
        }
        for subject in subjects {
            println!("\n### {subject}\n\n| | Go | vwire | how many times better |\n|---|---:|---:|---:|");
            self.rows.iter().filter(|row| row.subject == subject).for_each(Row::print);
        }
    }
}

impl Row {
    fn print(&self) {
        let ratio = match (self.go, self.vwire) {
            (Some(go), Some(vwire)) if go > 0.0 && vwire > 0.0 => match self.better {
                Better::More => number(vwire / go),
                Better::Less => number(go / vwire),
            },
            _ => "–".to_owned(),
        };
        let shown = |value: Option<f64>| value.map_or("–".to_owned(), number);
        println!("| {} | {} | {} | {ratio} |", self.name, shown(self.go), shown(self.vwire));
    }
}

fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
