"""The page of `demo`, in Gradio: an image and phrases on the left, boxes and heat maps on the right.

Imported late, by `vg_utils.demo.run_demo`, after it has set what Gradio reads when it is imported.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from vg_utils.data import DataError
from vg_utils.demo import (
    ALL_PHRASES,
    MOST_MEGABYTES,
    MOST_PHRASES,
    Answer,
    Asker,
    draw,
    draw_heatmaps,
    summary,
    timing,
)
from vg_utils.models.checkpoints import CheckpointError, shipped_checkpoints

PRESENCE = 0.5  # a phrase that is less likely to fit anything gets no box, until somebody moves the slider
PHOTOGRAPHS = Path(__file__).parent.parent / "Visuals/photographs"  # not in an installation
EXAMPLES = {
    "coffee.jpg": "the cup of coffee\nthe spoon\nthe table\nthe elephant",
    "cat.jpg": "the cat\nthe face of the cat\nthe dog",
    "astronaut.jpg": "the smiling woman\nthe orange suit\nthe bicycle",
}
# Nothing of the page comes from another server, whatever Gradio's own pages name: fonts, scripts, pictures.
STYLE = """
#boxes img { width: 100%; height: 100%; object-fit: contain; }
#maps .grid-wrap { min-height: 0; margin-top: 2rem; }
#maps .thumbnail-lg { aspect-ratio: auto; }
#examples td { white-space: pre-line; text-align: left; }
"""
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def serve(asker: Asker, checkpoint: str, host: str, port: int, share: bool) -> None:
    """Serve the page until it is stopped; see `vg_utils.demo.run_demo`."""
    # Gradio opens an upload by itself, and where it does not decode the page would say "Error" and no more.
    # Not by a subclass, whose metaclass writes a stub file beside this one.
    gr.Image.preprocess = lambda self, payload: payload and payload.path
    # Gradio's own theme asks Google for fonts.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page = build_page(asker, checkpoint)
    _, local, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,  # said, because None is True in Colab
        max_file_size=MOST_MEGABYTES * 2**20,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        state_session_capacity=100,
        theme=theme,
        css=STYLE,
        app_kwargs={"middleware": [(OwnFilesOnly, (), {})]},
    )
    print(f"the page is at {public or local} (stop it with Ctrl-C)", flush=True)
    page.block_thread()


class OwnFilesOnly:
    """ASGI: no address of the page hands on a file of another server, and the browser asks no other."""

    def __init__(self, app: Callable) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        if scope["type"] == "http" and "file=http" in scope["path"].lower():
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"not a file of this page"})
        else:
            await self.app(scope, receive, send_with_policy)


def build_page(asker: Asker, checkpoint: str) -> gr.Blocks:
    """The page, which is not served yet.

    Args:
        asker: who answers.
        checkpoint: the one that is chosen first, beside the shipped ones.
    """

    def ask(path: str | None, text: str, chosen: str, threshold: float) -> list[Any]:
        try:
            answer = asker.ask(Path(path) if path else None, text, chosen)
        except (DataError, CheckpointError) as error:  # nothing of the answer before stays beside it
            reason = str(error).replace(path, Path(path).name) if path else str(error)
            hidden = gr.update(visible=False)
            return [None, None, hidden, hidden, f"<b>Not answered:</b> {html.escape(reason)}"]
        maps = draw_heatmaps(answer)
        about = f"<b>{timing(answer)}</b><br>{html.escape(asker.load(chosen).origin)}"
        return [answer, *show(answer, ALL_PHRASES, threshold), gr.Gallery(maps, visible=bool(maps)), about]

    # The files that were sent go after a day.
    with gr.Blocks(title="Visual grounding", analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown("# Visual grounding\nAn image and a phrase in, the one box that the phrase means out.")
        answer = gr.State()
        with gr.Row():
            with gr.Column(scale=2):
                questions, find, about, examples = _questions(checkpoint)
            with gr.Column(scale=3):
                drawn, phrase, maps = _answers()
        events = [find.click] + ([examples.load_input_event.then] if examples else [])
        for event in events:
            event(ask, questions, [answer, drawn, phrase, maps, about], api_visibility="private")
        threshold = questions[-1]
        for event in (phrase.input, threshold.release):
            event(
                show, [answer, phrase, threshold], [drawn, phrase],
                api_visibility="private", show_progress="hidden",
            )  # fmt: skip
    return page


def show(answer: Answer | None, number: int, threshold: float) -> list[Any]:
    """The image with the boxes of all phrases or of one, and the phrases to choose from."""
    if answer is None:
        return [gr.skip(), gr.skip()]
    lines = [(summary(p, threshold), i) for i, p in enumerate(answer.predictions)]
    phrases = gr.Radio([("all phrases", ALL_PHRASES), *lines], value=number, visible=True)
    return [draw(answer, number, threshold), phrases]


def _questions(checkpoint: str) -> tuple[list[Any], gr.Button, gr.HTML, gr.Examples | None]:
    """A question's parts (image, phrases, checkpoint, threshold), the button, what is said then, examples."""
    sources = ["upload", "webcam", "clipboard"]
    image = gr.Image(type="filepath", image_mode=None, label="Image", sources=sources)
    text = gr.Textbox(label="Phrases", info=f"One a line, {MOST_PHRASES} at most", lines=4)
    checkpoints = list(dict.fromkeys([checkpoint, *shipped_checkpoints()]))
    model = gr.Dropdown(checkpoints, value=checkpoint, label="Checkpoint")
    info = "A phrase that is less likely to fit anything gets no box."
    threshold = gr.Slider(0, 1, PRESENCE, step=0.01, label="Smallest presence", info=info)
    find = gr.Button("Find", variant="primary")
    about = gr.HTML(elem_id="about")
    examples = None
    if PHOTOGRAPHS.is_dir():
        rows = [[str(PHOTOGRAPHS / name), phrases] for name, phrases in EXAMPLES.items()]
        examples = gr.Examples(rows, [image, text], cache_examples=False, elem_id="examples")
    return [image, text, model, threshold], find, about, examples


def _answers() -> tuple[gr.Image, gr.Radio, gr.Gallery]:
    """The image with its boxes, the phrases to choose one from, and the heat maps."""
    buttons = ["download", "fullscreen"]  # and no "share", which would send it to others
    drawn = gr.Image(
        label="Boxes", show_label=False, format="png", interactive=False, height=480, buttons=buttons,
        elem_id="boxes",
    )  # fmt: skip
    phrase = gr.Radio([], label="Click a phrase to see its box alone", visible=False)
    maps = gr.Gallery(
        label="Where the model sees each phrase", columns=3, height="auto", object_fit="contain",
        visible=False, buttons=buttons, elem_id="maps",
    )  # fmt: skip
    return drawn, phrase, maps
