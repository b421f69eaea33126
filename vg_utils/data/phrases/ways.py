"""The words that meanings are put into: tables of ways to say a thing, of which one is drawn."""

from __future__ import annotations

ORDINALS = {2: ("second", "2nd", "second"), 3: ("third", "3rd", "third"), 4: ("fourth", "4th")}
INNER = (  # of three, before the noun and after it
    ("middle", "center", "middle"),
    (
        "in the middle",
        "between the other two",
        "in the middle of the three",
        "in between the other two",
        "in middle",
    ),
)
SIDES = {  # ways to say where, before the noun and after it
    "left": (
        ("left", "left", "left side", "left hand"),
        (
            *("on the left", "on the left", "on left", "to the left", "at left", "on the left side"),
            *(
                "on the left hand side",
                "in the left",
                "on the left of the picture",
                "on the left side of the photo",
            ),
            *("at the left of the image", "to the left side", "on left side"),
        ),
    ),
    "middle": (
        ("middle", "center", "middle"),
        (
            "in the middle",
            "in the center",
            "in middle",
            "in the middle of the picture",
            "at the center",
            "in center",
        ),
    ),
    "top": (("top", "upper"), ("at the top", "on top", "on the top", "at the top of the picture", "at top")),
    "bottom": (
        ("bottom", "lower"),
        ("at the bottom", "on the bottom", "at bottom", "at the bottom of the picture"),
    ),
}
LEVELS = {"top": ("top", "top", "upper"), "bottom": ("bottom", "bottom", "lower")}
MOST = {
    "left": (
        ("leftmost", "far left", "left most", "far left"),
        (
            *("on the far left", "on far left", "furthest to the left", "farthest left", "at the far left"),
            *(
                "all the way on the left",
                "closest to the left edge",
                "on the far left side",
                "to the far left",
            ),
        ),
    ),
    "top": (("top", "topmost", "highest"), ("at the very top", "highest up", "at the top")),
    "bottom": (("bottom", "lowest"), ("at the very bottom", "lowest down", "at the bottom")),
    "largest": (("biggest", "largest", "big", "large", "bigger", "larger"), ()),
    "smallest": (("smallest", "small", "smaller", "littlest", "tiny"), ()),
    "front": (
        ("closest", "nearest", "front", "closer"),
        (
            *(
                "in front",
                "in the front",
                "closest to the camera",
                "in the foreground",
                "nearest to the camera",
            ),
            *("closest to us", "closest", "up front", "nearest the viewer"),
        ),
    ),
    "back": (
        ("farthest", "back", "background", "furthest"),
        (
            *("in the background", "in the back", "in back", "farthest from the camera", "furthest away"),
            *("in background", "farthest away", "at the back", "in the distance"),
        ),
    ),
}
WORN = {  # ways to say what colour somebody wears; "{}" is the colour
    "any": (
        *("in {}", "wearing {}", "in {}", "dressed in {}"),
        *(
            "in a {} shirt",
            "wearing a {} shirt",
            "with {} shirt",
            "in {} shirt",
            "in {} top",
            "wearing a {} top",
        ),
    ),
    "top": (
        *(
            "in a {} shirt",
            "wearing a {} shirt",
            "with a {} shirt",
            "in {} shirt",
            "in the {} shirt",
            "with {} shirt",
        ),
        *("wearing a {} top", "in a {} top", "in {} top"),
    ),
    "bottom": ("in {} pants", "wearing {} pants", "with {} pants", "in {} trousers", "who wears {} pants"),
}
RELATIONS = {
    "left of": ("to the left of", "left of", "on the left of", "to the left side of", "on the left side of"),
    "above": ("above", "over", "above"),
    "below": ("below", "under", "beneath", "underneath"),
    "next to": ("next to", "beside", "by", "near", "next to", "close to"),
    "behind": ("behind", "in back of", "behind", "standing behind"),
    "in front of": ("in front of", "in front of", "standing in front of"),
    "on": ("on", "on top of", "lying on", "on"),
    "holding": ("holding", "holding", "with", "who is holding", "who holds", "carrying", "that has"),
    "wearing": ("wearing", "with", "wearing", "who is wearing", "that has on"),
    "riding": ("riding", "on", "who is riding", "riding on", "on top of", "who rides"),
    "sitting on": ("sitting on", "on", "seated on", "who is sitting on", "sitting down on", "who sits on"),
    "having": ("with", "who has", "with", "that has"),
}
ON_SKIS = ("on", "wearing", "with", "riding", "who is on")
INVERSES = {  # "{}" is the person
    "holding": (
        *("held by {}", "that {} is holding", "{} is holding", "in the hands of {}", "being held by {}"),
        *("which {} is holding", "carried by {}"),
    ),
    "wearing": ("worn by {}", "that {} is wearing", "{} is wearing", "on {}"),
    "riding": (
        "that {} is riding",
        "{} is riding",
        "ridden by {}",
        "under {}",
        "being ridden by {}",
        "with {} on it",
    ),
    "sitting on": (
        "that {} is sitting on",
        "{} is sitting on",
        "with {} sitting on it",
        "{} sits on",
        "under {}",
    ),
    "having": ("of {}", "with {}", "that {} has"),
    "on": ("with {} on it", "that has {} on it", "with {} on top"),
}
NEAREST = ("closest to", "nearest to", "nearest", "closest to")
COLOR_WORDS = (
    *(
        "black",
        "white",
        "gray",
        "grey",
        "red",
        "orange",
        "yellow",
        "green",
        "blue",
        "purple",
        "pink",
        "brown",
    ),
)
