"""What people call the classes of a detection data set, and which classes they may mean by a word.

A class that is not listed here goes by its own name, so any data set works; the lists only add synonyms and
keep words apart that people mix up. Class names are those of COCO; `canonical` translates those of VOC.
"""

from __future__ import annotations

from functools import cache

PERSON = "person"
OTHER_NAMES = {  # class: what else people call it, beside its name
    "airplane": ("plane", "jet"),
    "backpack": ("book bag",),
    "baseball bat": ("bat",),
    "baseball glove": ("glove", "mitt", "baseball mitt"),
    "bicycle": ("cycle",),
    "cat": ("kitty",),
    "cell phone": ("phone", "cellphone", "mobile phone"),
    "couch": ("sofa",),
    "cup": ("mug",),
    "dining table": ("table",),
    "dog": ("doggy", "pup"),
    "donut": ("doughnut",),
    "fire hydrant": ("hydrant",),
    "frisbee": ("disc",),
    "hair drier": ("hair dryer",),
    "handbag": ("purse",),
    "hot dog": ("hotdog",),
    "keyboard": ("computer keyboard",),
    "laptop": ("laptop computer", "computer"),
    "motorcycle": ("motorbike", "motor bike"),
    "mouse": ("computer mouse",),
    "oven": ("stove",),
    "potted plant": ("plant",),
    "refrigerator": ("fridge",),
    "remote": ("remote control", "controller"),
    "skateboard": ("skate board",),
    "skis": ("pair of skis",),
    "sports ball": ("ball",),
    "suitcase": ("luggage", "travel bag"),
    "surfboard": ("surf board",),
    "teddy bear": ("stuffed bear", "teddy"),
    "tennis racket": ("racket", "racquet", "tennis racquet"),
    "tie": ("necktie",),
    "toilet": ("commode",),
    "traffic light": ("stop light", "traffic signal"),
    "tv": ("television", "tv screen", "monitor"),
    "wine glass": ("glass",),
}
GROUPS = {  # a word for several classes: it means any of them
    "animal": ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    "vehicle": ("car", "bus", "truck"),
    "bag": ("backpack", "handbag", "suitcase"),
    "bike": ("bicycle", "motorcycle"),
    "bear": ("bear", "teddy bear"),
    "fruit": ("banana", "apple", "orange"),
    "board": ("surfboard", "snowboard", "skateboard"),
    "seat": ("chair", "couch", "bench"),
}
CONFUSED = (  # classes that annotators or speakers take for each other: a word for one may mean another
    ("car", "truck"),
    ("truck", "bus"),
    ("couch", "chair"),
    ("chair", "bench"),
    ("couch", "bed"),
    ("backpack", "handbag", "suitcase"),
    ("cup", "wine glass"),
    ("cup", "bowl"),
    ("cup", "bottle"),
    ("wine glass", "bottle"),
    ("vase", "potted plant"),
    ("vase", "bottle"),
    ("vase", "cup"),
    ("vase", "bowl"),
    ("skis", "snowboard"),
    ("remote", "cell phone"),
    ("sandwich", "hot dog"),
    ("donut", "cake"),
    ("oven", "microwave"),
    ("oven", "toaster"),
    ("tv", "laptop"),
    ("sheep", "cow"),
    ("sheep", "dog"),
    ("cow", "horse"),
    ("horse", "zebra"),
    ("bear", "dog"),
    ("train", "bus"),
    ("kite", "umbrella"),
    ("bicycle", "motorcycle"),
    ("laptop", "keyboard"),
    ("spoon", "fork", "knife"),
    ("stop sign", "traffic light"),
    ("stop sign", "parking meter"),
    ("orange", "apple"),
    ("orange", "sports ball"),
    ("frisbee", "sports ball"),
    ("bench", "dining table"),
    ("bed", "dining table"),
)
ALIASES = {  # VOC's names
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
    "television": "tv",
}
PLURALS = {"person": "people", "sheep": "sheep", "skis": "skis", "scissors": "scissors", "knife": "knives"}
PLURAL_CLASSES = ("skis", "scissors")  # one thing, but "a skis" is no English

# Kinds of people that captions can prove; each with the words that mean it beyond doubt.
PEOPLE = {
    "man": ("man", "guy", "man", "guy", "male"),
    "woman": ("woman", "lady", "woman", "female"),
    "boy": ("boy", "kid", "boy", "child"),
    "girl": ("girl", "girl", "kid", "child"),
    "child": ("kid", "child", "little kid"),
    "male": ("guy", "male"),
    "female": ("female",),
}
KINDS_OF_WORD = {  # word: the kinds of people that it certainly means, and those that it may mean
    "man": (("man",), ("male",)),
    "guy": (("man", "male"), ("boy", "child")),
    "male": (("man", "boy", "male"), ("child",)),
    "boy": (("boy",), ("child", "male")),
    "woman": (("woman",), ("female", "girl")),
    "lady": (("woman",), ("female", "girl")),
    "female": (("woman", "girl", "female"), ("child",)),
    "girl": (("girl",), ("child", "female", "woman")),
    "kid": (("boy", "girl", "child"), ("male", "female")),
    "child": (("boy", "girl", "child"), ("male", "female")),
    "little kid": (("boy", "girl", "child"), ("male", "female")),
}
ROLES = {  # somebody with such a thing goes by another name: (class, relation): names
    ("skis", "riding"): ("skier",),
    ("snowboard", "riding"): ("snowboarder",),
    ("surfboard", "riding"): ("surfer",),
    ("skateboard", "riding"): ("skateboarder", "skater"),
    ("tennis racket", "holding"): ("tennis player",),
    ("baseball bat", "holding"): ("batter",),
    ("bicycle", "riding"): ("cyclist", "bicyclist"),
    ("motorcycle", "riding"): ("motorcyclist", "biker"),
}

HELD = (  # what lies within a person's box is in a hand; cups, bottles and books stand behind as often
    *("tennis racket", "baseball bat", "umbrella", "cell phone", "frisbee", "remote", "handbag", "sandwich"),
    *(
        "hot dog",
        "donut",
        "banana",
        "toothbrush",
        "teddy bear",
        "surfboard",
        "skateboard",
        "snowboard",
        "kite",
    ),
    "hair drier",
)
CLUTTER = (
    "chair",
    "book",
    "bottle",
    "cup",
    "bowl",
    "wine glass",
    "fork",
    "knife",
    "spoon",
)  # seldom all annotated
WORN = ("tie", "backpack", "baseball glove")
RIDDEN = ("horse", "elephant", "bicycle", "motorcycle")
BOARDS = ("surfboard", "skateboard", "snowboard", "skis")
SEATS = ("chair", "couch", "bench", "bed")
SUPPORTS = ("dining table", "couch", "bed", "bench", "chair")
AIRBORNE = (
    "airplane",
    "bird",
    "kite",
    "frisbee",
    "sports ball",
    "clock",
    "traffic light",
    "stop sign",
    "tie",
)
STACKED = ("tv", "laptop", "keyboard", "microwave", "oven", "refrigerator", "sink", "vase", "book", "toaster")
ANIMALS = GROUPS["animal"]
LARGE_ANIMALS = ("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
VEHICLES = ("car", "truck", "bus", "train", "motorcycle", "bicycle", "boat")
GROUNDED = (PERSON, *ANIMALS, *VEHICLES)  # stand on the ground, and are of one size: a small one is far away
KINDS = (  # classes of one kind, as COCO has them: what is not there is taken for what is like it
    ANIMALS,
    (*VEHICLES, "airplane"),
    ("traffic light", "fire hydrant", "stop sign", "parking meter", "bench"),
    ("backpack", "umbrella", "handbag", "tie", "suitcase"),
    (*BOARDS, "frisbee", "sports ball", "kite", "baseball bat", "baseball glove", "tennis racket"),
    ("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    ("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"),
    ("chair", "couch", "potted plant", "bed", "dining table", "toilet"),
    ("tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    ("microwave", "oven", "toaster", "sink", "refrigerator"),
    ("book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
COLORED = (  # classes whose own colour fills the middle of their box
    *("car", "truck", "bus", "train", "motorcycle", "boat", "airplane", "umbrella", "handbag", "backpack"),
    *("suitcase", "surfboard", "snowboard", "kite", "couch", "cup", "bowl", "vase", "tie", "frisbee"),
    *("horse", "dog", "cat", "cow", "sheep", "bear", "teddy bear", "refrigerator", "fire hydrant"),
    *("bottle", "book", "toilet", "sports ball", "bird", "apple", "banana", "skateboard", "remote", "laptop"),
    *("cell phone", "oven", "baseball glove", "toothbrush"),
)
COLOR_IN_NAME = ("orange", "stop sign", "carrot", "broccoli", "elephant", "zebra", "giraffe")  # goes unsaid


def canonical(name: str) -> str:
    """The class name in lower case with spaces, VOC's names as COCO's.

    >>> canonical("Traffic_Light"), canonical("aeroplane")
    ('traffic light', 'airplane')
    """
    name = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    return ALIASES.get(name, name)


@cache
def names_of(category: str) -> tuple[str, ...]:
    """All words for a class, its own name first; words of its groups are not among them."""
    return (category, *OTHER_NAMES.get(category, ()))


@cache
def groups_of(category: str) -> tuple[str, ...]:
    """The words that mean the class and others as well."""
    return tuple(word for word, classes in GROUPS.items() if category in classes and word != category)


@cache
def mentions_of(category: str) -> frozenset[str]:
    """All words that mention the class, plurals too."""
    names = (*names_of(category), *groups_of(category))
    return frozenset((*names, *map(plural, names)))


@cache
def confused_with(category: str) -> frozenset[str]:
    """The classes that a word for this one may mean, itself included."""
    return frozenset({category}.union(*(group for group in CONFUSED if category in group)))


@cache
def kind_of(category: str) -> frozenset[str]:
    """The classes of the same kind, itself among them."""
    return frozenset({category}.union(*(kind for kind in KINDS if category in kind)))


@cache
def classes_of(word: str) -> tuple[frozenset[str], frozenset[str]]:
    """The classes that a word means for certain, and all that it may mean."""
    if word in KINDS_OF_WORD:
        return frozenset(), frozenset((PERSON,))
    owners = {category for category in (word, *OTHER_NAMES) if word in names_of(category)}
    owners.update(GROUPS.get(word, ()))
    return frozenset(owners), frozenset().union(*map(confused_with, owners))


@cache
def class_of_word(word: str) -> str | None:
    """The one class that a listed synonym or person word means, None for other words."""
    if word in KINDS_OF_WORD:
        return PERSON
    return next((category for category, words in OTHER_NAMES.items() if word in words), None)


def plural(noun: str) -> str:
    """The plural of a noun or of a name's last word.

    >>> plural("bus"), plural("wine glass"), plural("couch"), plural("teddy bear"), plural("man")
    ('buses', 'wine glasses', 'couches', 'teddy bears', 'men')
    """
    if noun in PLURALS:
        return PLURALS[noun]
    if noun.endswith("man"):
        return noun[:-3] + "men"
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun if noun in ("luggage", "fruit") else noun + "s"
