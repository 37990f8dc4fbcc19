use super::*;
use std::ptr;

const SCANS: [Scan; 2] = [Scan::Call, Scan::Words];

/// A mapped window of some pages that asks the kernel this way, if the kernel can be.
fn window(pages: usize, scan: Scan) -> Option<Window> {
    if scan == Scan::Call && Scan::of_this_kernel() != scan {
        return None;
    }
    let made = Window::create(pages * page_size()).unwrap();
    let window = Window::of(made.file, made.len, scan);
    window.map().unwrap();
    Some(window)
}

fn windows(pages: usize) -> impl Iterator<Item = Window> {
    SCANS
        .into_iter()
        .filter_map(move |scan| window(pages, scan))
}

fn offset(page: usize) -> u64 {
    (page * page_size()) as u64
}

fn at(start: Option<NonNull<u8>>, page: usize) -> *mut u8 {
    start.unwrap().as_ptr().wrapping_add(page * page_size())
}

fn shared(window: &Window, page: usize) -> u8 {
    // SAFETY: the page is mapped; the tests write by themselves.
    unsafe { at(window.shared(), page).read_volatile() }
}

fn private(window: &Window, page: usize) -> u8 {
    // SAFETY: as above.
    unsafe { at(window.private(), page).read_volatile() }
}

fn write_private(window: &Window, page: usize, byte: u8) {
    // SAFETY: as above.
    unsafe { at(window.private(), page).write_volatile(byte) }
}

#[test]
fn the_kernel_is_asked_the_way_it_can_be() {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    if version >= (6, 7) {
        assert_eq!(Scan::of_this_kernel(), Scan::Call);
    }
    assert_eq!(
        Scan::of_this_kernel(),
        Window::create(page_size()).unwrap().scan
    );
}

#[test]
fn a_private_write_is_seen_nowhere_else() {
    for window in windows(4) {
        window.write_cold(offset(1), b"cold").unwrap();
        window.write_warm(offset(2), b"warm").unwrap();
        for page in 0..4 {
            assert_eq!(shared(&window, page), private(&window, page));
        }
        assert_eq!([private(&window, 1), private(&window, 2)], *b"cw");
        write_private(&window, 1, b'x');
        assert_eq!([private(&window, 1), shared(&window, 1)], *b"xc");
        window.write_warm(offset(1), b"y").unwrap();
        assert_eq!([private(&window, 1), shared(&window, 1)], *b"xy");
    }
}

#[test]
fn another_owner_of_the_file_has_the_same_window() {
    let window = window(3, Scan::Words).unwrap();
    let other = Window::open(window.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(other.len(), window.len());
    assert_eq!((other.shared(), other.private()), (None, None));
    assert!(other.is_unchanged(0, other.len()).unwrap());
    other.discard_changes(0, other.len()).unwrap();
    other.map().unwrap();
    other.map().unwrap();
    write_private(&window, 0, b'x');
    other.write_warm(offset(0), b"a").unwrap();
    assert_eq!(
        [shared(&window, 0), private(&window, 0), private(&other, 0)],
        *b"axa"
    );
}

#[test]
fn what_was_written_is_told_to_the_page() {
    for window in windows(300) {
        assert!(window.is_unchanged(0, window.len()).unwrap());
        window.write_cold(0, &vec![1; window.len()]).unwrap();
        (0..300).for_each(|page| assert_eq!(private(&window, page), 1));
        assert!(
            window.is_unchanged(0, window.len()).unwrap(),
            "it was only read"
        );
        // More runs than are asked for at a time.
        (0..300)
            .step_by(2)
            .for_each(|page| write_private(&window, page, 2));
        for page in 0..300 {
            let is_unchanged = window.is_unchanged(offset(page) + 7, 9).unwrap();
            assert_eq!(is_unchanged, page % 2 == 1, "page {page} {:?}", window.scan);
        }
        assert!(
            !window.is_unchanged(offset(1) - 1, 2).unwrap(),
            "taken outward"
        );
        let start = window.private().unwrap().as_ptr() as usize;
        let pages = start..start + window.len();
        let runs = window.scan.written(&pages, usize::MAX).unwrap();
        assert_eq!(runs.len(), 150);
        assert!(runs.iter().all(|run| run.len() == page_size()));
        assert_eq!(window.scan.written(&pages, 70).unwrap(), runs[..70]);
    }
}

/// Whether the page at this address is mapped just now.
fn is_mapped(address: *mut u8) -> bool {
    let word = address as usize / page_size() * 8;
    let mut bytes = [0; 8];
    let table = File::open("/proc/self/pagemap").unwrap();
    table.read_exact_at(&mut bytes, word as u64).unwrap();
    u64::from_ne_bytes(bytes) >> 63 == 1
}

#[test]
fn only_written_pages_are_discarded_and_the_others_follow_the_file() {
    for window in windows(200) {
        window.write_cold(0, &vec![1; window.len()]).unwrap();
        (0..200).for_each(|page| assert_eq!(private(&window, page), 1));
        (1..200)
            .step_by(2)
            .for_each(|page| write_private(&window, page, 2));
        window.discard_changes(offset(0), window.len() / 2).unwrap();
        assert!(window.is_unchanged(0, window.len() / 2).unwrap());
        assert!(
            !window.is_unchanged(0, window.len()).unwrap(),
            "only what was named"
        );
        for page in (0..200).step_by(2) {
            assert!(
                is_mapped(at(window.private(), page)),
                "page {page} was clean"
            );
        }
        assert!(!is_mapped(at(window.private(), 1)));
        window.write_warm(0, &vec![3; window.len()]).unwrap();
        for page in 0..200 {
            let expected = if page >= 100 && page % 2 == 1 { 2 } else { 3 };
            assert_eq!(private(&window, page), expected, "page {page}");
        }
    }
}

#[test]
fn pages_that_are_populated_are_mapped_and_writable() {
    let window = window(300, Scan::Words).unwrap();
    window.write_cold(0, &vec![1; window.len()]).unwrap();
    assert!(!is_mapped(at(window.shared(), 100)));
    window.populate(offset(100) + 1, 50 * page_size()).unwrap();
    assert!((100..=150).all(|page| is_mapped(at(window.shared(), page))));
    assert!(!is_mapped(at(window.shared(), 250)));
    window.write_warm(offset(120), b"x").unwrap();
    assert_eq!([shared(&window, 119), shared(&window, 120)], *b"\x01x");
    assert!(window.populate(offset(300), 1).is_err());
}

#[test]
fn locked_pages_are_discarded_too() {
    for window in windows(4) {
        let start = at(window.private(), 0);
        // SAFETY: pages of this mapping; locking them changes nothing that is seen.
        if unsafe { rustix::mm::mlock(start.cast(), window.len()) }.is_err() {
            // Nobody may lock memory here.
            continue;
        }
        write_private(&window, 1, 1);
        window.discard_changes(0, window.len()).unwrap();
        assert_eq!(private(&window, 1), 0);
        assert!(window.is_unchanged(offset(1), 1).unwrap());
    }
}

#[test]
fn a_private_copy_takes_no_part() {
    for window in windows(4) {
        window.write_cold(offset(1), b"text").unwrap();
        let copy = window.private_copy(offset(1) + 2, page_size()).unwrap();
        // SAFETY: the range was asked for.
        let byte = || unsafe { copy.start().as_ptr().read_volatile() };
        assert_eq!(byte(), b'x');
        assert!(copy.is_unchanged().unwrap());
        write_private(&window, 1, b'T');
        assert!(copy.is_unchanged().unwrap());
        // SAFETY: the last byte that was asked for.
        unsafe { ptr::write_volatile(copy.start().as_ptr().add(page_size() - 1), 1) };
        assert!(!copy.is_unchanged().unwrap());
        assert!(window.is_unchanged(offset(2), 1).unwrap());
        window.discard_changes(0, window.len()).unwrap();
        assert_eq!(private(&window, 2), 0);
        assert!(!copy.is_unchanged().unwrap());
        assert_eq!(byte(), b'x');
    }
}

#[test]
fn a_window_takes_memory_only_where_it_is_written() {
    let window = window(1000, Scan::Words).unwrap();
    let pages = || fstat(&window).unwrap().st_blocks as usize * 512 / page_size();
    assert_eq!(pages(), 0);
    window
        .write_cold(offset(10), &vec![1; 5 * page_size()])
        .unwrap();
    assert_eq!((pages(), private(&window, 12)), (5, 1));
    window.punch(offset(11), 2 * page_size()).unwrap();
    assert_eq!(
        (pages(), private(&window, 10), private(&window, 14)),
        (3, 1, 1)
    );
    assert_eq!((private(&window, 12), shared(&window, 12)), (0, 0));
}

#[test]
fn what_is_not_in_the_window_is_an_error() {
    let window = window(2, Scan::Words).unwrap();
    for (start, len) in [
        (offset(2), 1),
        (offset(1), page_size() + 1),
        (u64::MAX, 1),
        (1, usize::MAX),
    ] {
        assert!(window.check(start, len).is_err());
        assert!(window.is_unchanged(start, len).is_err());
        assert!(window.discard_changes(start, len).is_err());
        assert!(window.private_copy(start, len).is_err());
        assert!(window.punch(start, len).is_err());
    }
    assert!(window.write_cold(offset(2) - 1, b"xx").is_err());
    assert!(window.write_warm(offset(2) - 1, b"xx").is_err());
    assert_eq!(window.check(3, 4).unwrap(), 3..7);
    assert!(ftruncate(&window.file, 0).is_err(), "its size is sealed");
}

#[test]
fn limits_make_a_window_smaller() {
    let page = page_size() as u64;
    let allow = |file, all, data, most| {
        AddressLimits {
            file,
            left: [all, data],
        }
        .allow(most)
    };
    let most = 1 << 30;
    assert_eq!(allow(None, None, None, most), most);
    assert_eq!(
        allow(Some(10 * page + 1), None, None, most),
        10 * page_size()
    );
    assert_eq!(allow(None, Some(80 * page), None, most), 10 * page_size());
    assert_eq!(
        allow(None, Some(80 * page), Some(16 * page), most),
        2 * page_size()
    );
    assert_eq!(allow(None, Some(page), None, most), 0);
    assert_eq!(
        allow(None, Some(u64::MAX), None, page_size() + 1),
        page_size()
    );
    assert!(AddressLimits::of_this_process().allow(most) > 0);
}

#[test]
fn what_is_displaced_is_its_users_alone() {
    for window in windows(8) {
        window.write_warm(offset(2), b"mine").unwrap();
        let bytes = 2 * page_size() - 1;
        let start = window.lay_open(offset(2), bytes).unwrap();
        assert_eq!(start.unwrap().as_ptr(), at(window.shared(), 2));
        window.displace(offset(2), bytes).unwrap();
        assert_eq!(shared(&window, 2), b'm');
        // The range is another's now; the addresses are not.
        for (page, written) in [(2, b"they"), (3, b"them"), (1, b"near"), (4, b"next")] {
            window.write_warm(offset(page), written).unwrap();
        }
        assert_eq!([1, 2, 3, 4].map(|page| shared(&window, page)), *b"nm\0n");
        assert_eq!([1, 2, 3, 4].map(|page| private(&window, page)), *b"nttn");
        assert_eq!(window.lay_open(offset(3), 1).unwrap(), None);
        // SAFETY: the page is mapped; the tests write by themselves.
        unsafe { at(window.shared(), 3).write_volatile(b'z') };
        assert_eq!(private(&window, 3), b't');
        window.replace(offset(2), bytes).unwrap();
        assert_eq!([1, 2, 3, 4].map(|page| shared(&window, page)), *b"nttn");
        window.write_warm(offset(3), b"warm").unwrap();
        assert_eq!([shared(&window, 3), private(&window, 3)], *b"ww");
        assert!(window.lay_open(offset(3), 1).unwrap().is_some());
    }
}

#[test]
fn what_is_not_there_is_not_displaced() {
    let window = Window::create(4 * page_size()).unwrap();
    assert!(window.displace(0, 10).is_err(), "it is not mapped");
    window.map().unwrap();
    assert!(window.displace(offset(3), page_size() + 1).is_err());
    assert!(window.lay_open(offset(4), 1).is_err());
}
