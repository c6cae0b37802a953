"""Films: frames, their times and sound, a face that is followed, landmarks that do not jump."""

import numpy as np
import pytest
from PIL import Image

from stx.domains import video
from stx.domains.align import Face
from stx.files.errors import FileError, ImageError
from stx.files.outputs import made_by_stx

av = pytest.importorskip("av")
SIZE, RATE = (48, 64), 10


def film(path, frames, sound=True):
    """A film of these frames, and a tone of its length in AAC."""
    with av.open(str(path), "w") as made:
        pictures = made.add_stream("libx264", rate=RATE, options={"crf": "10"})
        pictures.height, pictures.width, pictures.pix_fmt = *frames[0].shape[:2], "yuv420p"
        tone = made.add_stream("aac", rate=16000, layout="mono") if sound else None
        for i, frame in enumerate(frames):
            made.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            if sound:
                wave = np.sin(np.arange(1600)[None] / 7 + i).astype(np.float32) / 2
                part = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                part.sample_rate, part.pts = 16000, 1600 * i
                made.mux(tone.encode(part))
        made.mux(pictures.encode())
        if sound:
            made.mux(tone.encode())


def plain(count=12):
    return [np.full((*SIZE, 3), 20 * i + 10, np.uint8) for i in range(count)]


def packets(path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(file.streams.audio[0]) if packet.dts is not None]


def face(x: float, y: float = 50.0, side: float = 40.0) -> Face:
    points = np.array([[x - 8, y - 6], [x + 8, y - 6], [x, y], [x - 6, y + 8], [x + 6, y + 8]])
    return Face((x - side / 2, y - side / 2, x + side / 2, y + side / 2), points, 1.0)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_frames_times_and_sound_come_back(tmp_path, suffix):
    film(tmp_path / f"in{suffix}", plain())
    read = list(video.frames(tmp_path / f"in{suffix}"))
    assert len(read) == 12 and read[0].shape == (*SIZE, 3)
    assert np.abs(np.stack(read).astype(int) - np.stack(plain())).max() <= 4
    out = tmp_path / f"out{suffix}"
    video.write(out, (255 - frame for frame in read), tmp_path / f"in{suffix}")
    again = np.stack(list(video.frames(out))).astype(int)
    assert np.abs(255 - again - np.stack(plain())).max() <= 6
    assert packets(out) == packets(tmp_path / f"in{suffix}")  # to the bit
    with av.open(str(out)) as file, av.open(str(tmp_path / f"in{suffix}")) as given:
        times = [[float(f.pts * f.time_base) for f in one.decode(video=0)] for one in (file, given)]
        assert times[0] == pytest.approx(times[1], abs=1e-3)
    assert made_by_stx(out) and not made_by_stx(tmp_path / f"in{suffix}")
    with pytest.raises(FileError, match="not made by stx"):
        video.write(tmp_path / f"in{suffix}", iter(read), out)


def test_a_film_without_sound(tmp_path):
    film(tmp_path / "in.mp4", plain(), sound=False)
    video.write(tmp_path / "out.mp4", video.frames(tmp_path / "in.mp4"), tmp_path / "in.mp4")
    assert len(list(video.frames(tmp_path / "out.mp4"))) == 12


def test_folders_and_faults(tmp_path):
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(plain(3)):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{i:03d}.png")
    assert [frame[0, 0, 0] for frame in video.frames(tmp_path / "frames")] == [10, 30, 50]
    Image.new("RGB", (8, 8)).save(tmp_path / "frames" / "003.png")
    with pytest.raises(ImageError, match=r"003\.png: a frame of another size"):
        list(video.frames(tmp_path / "frames"))
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    with pytest.raises(ImageError, match=r"bad\.mp4: not a film"):
        list(video.frames(tmp_path / "bad.mp4"))


def test_the_same_face_is_followed():
    """Somebody larger who comes in later is not taken for the first face."""
    found = [[face(30)], [face(33), face(90)], [], [face(95, side=60), face(36)], [face(200)]]
    middles = [None if f is None else f.points[2, 0] for f in video.follow(found)]
    assert middles == [30, 33, None, 36, None]


def test_landmarks_are_smoothed_and_missing_ones_filled():
    """A face that moves evenly stays where it is; jitter loses most of its size; far from any face there is none."""
    line = [face(10.0 + 2 * i) for i in range(30)]
    even = [f.points[2, 0] for f in video.steady(line)]
    assert even[8:-8] == pytest.approx([10.0 + 2 * i for i in range(8, 22)], abs=0.02)
    noise = np.random.RandomState(0).randn(60)
    shaken = np.array([f.points[2, 0] for f in video.steady([face(50 + n) for n in noise])])
    assert shaken.std() < 0.5 * noise.std()
    assert [f.points[2, 0] for f in video.steady([face(10), None, face(14)], 0)] == [10, 12, 14]
    gone = video.steady([face(10)] + [None] * 20, 0)
    assert gone[12] is not None and gone[13] is None
    with pytest.raises(ImageError, match="no face found in any frame"):
        video.steady([None, None])
