//! Signatures that were found beside an image, where nobody has named them.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::Path;

use super::text::{bounded, into_io, read_file};
use super::{
    PublicKeys, SIGNATURE_MAX, SignatureError, Valid, beside, canonical, cosign, layout_beside, several,
};
use crate::ContentHash;

/// What lies beside an image and could be read in part at least. Each kind counts by itself: one that is no signature
/// takes nothing from another one that is.
#[derive(Debug)]
pub struct Found {
    texts: Vec<String>,
    refused: Vec<SignatureError>,
}

/// Reads the signatures beside an image ([`beside`], [`layout_beside`]), bounded; `None` where nothing is there. Nobody
/// has named them, so links are not followed: whoever may write there would choose which file is read.
///
/// # Errors
/// As for [`read`](super::read), of all that is there, when none of it can be read.
pub fn read_beside(image: &Path) -> Result<Option<Found>, SignatureError> {
    let mut found = Found { texts: Vec::new(), refused: Vec::new() };
    let file = match read_file(&beside(image), SIGNATURE_MAX, dmabuf::open_no_follow) {
        Err(SignatureError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => None,
        read => Some(read),
    };
    for read in [file, found_layout(&layout_beside(image))].into_iter().flatten() {
        match read {
            Ok(text) => found.texts.push(text),
            Err(error) => found.refused.push(error),
        }
    }
    match (found.texts.is_empty(), found.refused.is_empty()) {
        (true, true) => Ok(None),
        (true, false) => Err(several(found.refused)),
        (false, _) => Ok(Some(found)),
    }
}

/// The signatures in a layout, through no link; `None` where there is no directory with an index.
fn found_layout(path: &Path) -> Option<Result<String, SignatureError>> {
    if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return None;
    }
    let directory = match dmabuf::open_no_follow(path) {
        Ok(directory) => directory,
        Err(error) => {
            return Some(Err(SignatureError::Read { path: path.to_owned(), source: into_io(error) }));
        }
    };
    cosign::read_layout(path, &|name: &Path| dmabuf::open_beneath(directory.as_fd(), name))
}

impl Found {
    /// Checks that one of the keys has signed a content, by one of the signatures.
    ///
    /// # Errors
    /// As for [`PublicKeys::verify`], of each kind, and why what else lies there is none.
    pub fn verify(self, keys: &PublicKeys, content: &ContentHash) -> Result<Valid, SignatureError> {
        let mut errors = Vec::new();
        for text in &self.texts {
            match keys.verify(content, text) {
                Ok(valid) => return Ok(valid),
                Err(error) => errors.push(error),
            }
        }
        errors.extend(self.refused);
        Err(several(errors))
    }

    /// What may be passed on to others ([`canonical`]), in one text, and why what else lies there is not.
    pub fn canonical(self) -> (String, Vec<SignatureError>) {
        let (mut passed, mut refused) = (String::new(), self.refused);
        for text in &self.texts {
            let joined = canonical(text).and_then(|text| {
                let joined = [passed.as_str(), &text].concat();
                bounded(&joined).map(|()| joined)
            });
            match joined {
                Ok(joined) => passed = joined,
                Err(error) => refused.push(error),
            }
        }
        (passed, refused)
    }
}
