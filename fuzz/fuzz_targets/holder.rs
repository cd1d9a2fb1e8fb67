//! Takes any bytes for a message of the holder's protocol, with any number of descriptors; what is understood must
//! come back the same when it is sent again.

#![no_main]

use daxfs::holder::message::{Reply, Request};
use daxfs::holder::wire::{DESCRIPTORS_MAX, MESSAGE_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // One byte in front of the message says how many descriptors came with it.
    let Some((count, message)) = data.split_first() else { return };
    if message.len() > MESSAGE_MAX {
        return;
    }
    let descriptors = usize::from(*count) % (DESCRIPTORS_MAX + 1);
    if let Ok(request) = Request::decode(message, descriptors) {
        assert_eq!(request.descriptors(), descriptors);
        assert_eq!(Request::decode(&request.encode(), descriptors), Ok(request));
    }
    if let Ok(reply) = Reply::decode(message, descriptors) {
        assert_eq!(reply.descriptors(), descriptors);
        let again = Reply::decode(&reply.encode(), descriptors);
        // In an error's text, bytes that are no UTF-8 are replaced by longer ones, and long texts are cut.
        if let (Reply::Error { refusal, .. }, Ok(Reply::Error { refusal: other, .. })) = (&reply, &again) {
            assert_eq!(refusal, other);
        } else {
            assert_eq!(again, Ok(reply));
        }
    }
});
