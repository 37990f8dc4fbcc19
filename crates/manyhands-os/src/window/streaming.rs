//! A copy that goes past the caches.

/// From so many bytes on a copy goes past the caches: it would drive all else out of them, and be driven out
/// itself before anybody reads it. Shorter ones are read from the caches, which is faster.
pub(super) const STREAMED: usize = 8 << 20;

/// Copies as `std::ptr::copy_nonoverlapping` does, with stores that do not first read what they overwrite.
///
/// # Safety
///
/// As for `std::ptr::copy_nonoverlapping`.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn copy_streaming(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{
        __m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_sfence, _mm_stream_si128,
    };
    const WORD: usize = size_of::<__m128i>();
    const LINE: usize = 4 * WORD;
    /// How far ahead of its use a line is asked for, in bytes.
    const AHEAD: usize = 512;
    /// Processors fetch ahead within a page and wait at each new one, so this many are copied side by side, as
    /// the GNU C library copies what is large.
    const PAGES: usize = 4;
    const PAGE: usize = 4096;
    let head = to.align_offset(LINE).min(len);
    let end = len - (len - head) % LINE;
    // SAFETY: all of it is in the two ranges, which the caller vouches for, but the prefetches, which may
    // be of any address. The streaming stores are to whole lines of the destination, so aligned.
    unsafe {
        let copy_line = |at: usize| {
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(at + AHEAD).cast());
            let source = from.add(at).cast::<__m128i>();
            let target = to.add(at).cast::<__m128i>();
            let words = [0, 1, 2, 3].map(|word| _mm_loadu_si128(source.add(word)));
            for (word, &bits) in words.iter().enumerate() {
                _mm_stream_si128(target.add(word), bits);
            }
        };
        std::ptr::copy_nonoverlapping(from, to, head);
        let mut at = head;
        while end - at >= PAGES * PAGE {
            for line in (at..at + PAGE).step_by(LINE) {
                for page in 0..PAGES {
                    copy_line(line + page * PAGE);
                }
            }
            at += PAGES * PAGE;
        }
        for line in (at..end).step_by(LINE) {
            copy_line(line);
        }
        // Streaming stores are in no order with others: whoever is told of the bytes is to find them.
        _mm_sfence();
        std::ptr::copy_nonoverlapping(from.add(end), to.add(end), len - end);
    }
}

/// Copies as `std::ptr::copy_nonoverlapping` does: the C library knows best what is fast here.
///
/// # Safety
///
/// As for `std::ptr::copy_nonoverlapping`.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn copy_streaming(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: what the caller vouches for.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
}

#[cfg(test)]
mod tests {
    use super::copy_streaming;

    fn check(firsts: std::ops::Range<usize>, lens: &[usize], skews: &[usize]) {
        let longest = lens.iter().max().unwrap();
        let from: Vec<u8> = (0..longest + 100)
            .map(|number| (number % 251) as u8)
            .collect();
        for (first, &len) in firsts.flat_map(|first| lens.iter().map(move |len| (first, len))) {
            for &skew in skews {
                let mut to = vec![255_u8; longest + 200];
                // SAFETY: both ranges are in their vectors.
                unsafe { copy_streaming(from[skew..].as_ptr(), to[first..].as_mut_ptr(), len) };
                assert_eq!(to[first..first + len], from[skew..skew + len]);
                let rest = to[..first].iter().chain(&to[first + len..]);
                assert!(
                    rest.into_iter().all(|&byte| byte == 255),
                    "{first} {len} {skew}"
                );
            }
        }
    }

    #[test]
    fn all_is_copied_and_no_more() {
        check(0..70, &[0, 1, 15, 63, 64, 65, 200, 513], &[0, 1, 16, 33]);
    }

    #[test]
    fn many_pages() {
        check(60..66, &[16_383, 16_384, 16_448, 40_001, 65_536], &[0, 8]);
    }
}
