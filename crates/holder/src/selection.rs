//! What is packed of a directory that is loaded.

use mkimage::{Links, Packer};

/// The part of a load's options that says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    links: Links,
    exclude: Vec<String>,
    include: Vec<String>,
    weights_only: bool,
    /// Whether a link that leads out of the directory ends the load. It leads to what this process sees there, which
    /// need not be what the client sees.
    pub(crate) confined: bool,
}

impl Selection {
    /// Takes an option; `None` for a key that is none of a selection.
    pub(crate) fn take(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        match key {
            "links" => match value.parse() {
                Ok(links) => self.links = links,
                Err(why) => return Some(Err(why)),
            },
            "exclude" => self.exclude.push(value.to_owned()),
            "include" => self.include.push(value.to_owned()),
            "weights-only" if !["0", "1"].contains(&value) => return Some(Err("expected 0 or 1".into())),
            "weights-only" => self.weights_only = value == "1",
            "confined" => self.confined = value == "1",
            _ => return None,
        }
        Some(Ok(()))
    }

    /// As keys and values, for a helper.
    pub(crate) fn options(&self) -> Vec<(&'static str, String)> {
        let mut options = vec![("links", self.links.to_string())];
        options.extend(self.exclude.iter().map(|glob| ("exclude", glob.clone())));
        options.extend(self.include.iter().map(|glob| ("include", glob.clone())));
        options.push(("weights-only", u8::from(self.weights_only).to_string()));
        options.push(("confined", u8::from(self.confined).to_string()));
        options
    }

    /// The packer with this selection.
    pub(crate) fn apply(&self, packer: Packer) -> Packer {
        let packer = packer.links(self.links).confined(self.confined).weights_only(self.weights_only);
        let packer = self.exclude.iter().fold(packer, Packer::exclude);
        self.include.iter().fold(packer, Packer::include)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let mut selection = Selection::default();
        for (key, value) in [
            ("links", "keep"),
            ("exclude", "*.bin"),
            ("exclude", "a=b"),
            ("include", "/x/"),
            ("weights-only", "1"),
        ] {
            selection.take(key, value).unwrap().unwrap();
        }
        assert_eq!((selection.links, selection.weights_only), (Links::Keep, true));
        assert_eq!(
            (&selection.exclude[..], &selection.include[..]),
            (&["*.bin".into(), "a=b".into()][..], &["/x/".into()][..])
        );
        let mut copy = Selection::default();
        for (key, value) in selection.options() {
            copy.take(key, &value).unwrap().unwrap();
        }
        assert_eq!(copy, selection);
        assert!(selection.take("links", "all").unwrap().is_err());
        assert!(selection.take("weights-only", "yes").unwrap().is_err());
        assert!(selection.take("into", "memfd").is_none());
    }
}
