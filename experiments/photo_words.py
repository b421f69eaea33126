"""Words that the backbone for photographs shall know: of everyday referring, and of COCO's classes."""

from __future__ import annotations

# Whole in the vocabulary, even where BERT's texts (Wikipedia, novels) have them rarely.
_WORDS = """
leftmost rightmost topmost bottommost uppermost lowermost foremost furthest farthest further farther nearest
nearer closest closer bigger biggest larger largest smaller smallest taller tallest shorter shortest longer
longest wider widest thinner thinnest thicker thickest fatter fattest older oldest younger youngest higher
highest lower lowest darker darkest lighter lightest brighter brightest middle centre center central upper
diagonal diagonally horizontal vertical upside sideways underneath beneath beside besides between amongst
towards opposite front back rear foreground background edge corner side sides row column pair group stack
pile bunch half whole partially blurry visible hidden occupied unoccupied empty full open closed broken
cropped first second third fourth fifth sixth seventh last only other another both each single lone facing
leaning sitting standing lying laying kneeling crouching squatting bending stretching reaching pointing
holding carrying wearing riding walking running jumping swinging throwing catching hitting kicking eating
drinking chewing biting cutting pouring cooking serving looking watching staring smiling laughing yawning
sleeping talking hugging kissing petting pushing pulling parked stacked folded hanging tilted sliced peeled
toasted melted frosted iced reddish greenish bluish yellowish brownish pinkish purplish grayish greyish
whitish blackish orangish tan beige cream maroon burgundy turquoise teal navy khaki lavender magenta violet
striped stripes checkered plaid polka dotted spotted patterned floral colored coloured colorful colourful
denim leather fabric wool cotton wooden metal metallic plastic wicker ceramic glass shiny round circular
oval square rectangular triangular pointy curved flat tiny huge giant blonde brunette redhead bald bearded
curly ponytail braid braids mustache moustache beard skinny chubby elderly toddler infant teenager adult
male female lady gentleman guy gal kid kids child children boy boys girl girls ladies guys man men woman
women person people shirt tshirt blouse sweater hoodie sweatshirt jacket vest coat suit tuxedo dress skirt
shorts jeans pants trousers leggings sleeve sleeves sleeveless collar tie necklace bracelet earrings watch
ring scarf gloves mittens socks shoes sneakers sandals boots slippers helmet cap beanie hat visor apron
uniform jersey wetsuit swimsuit bikini pajamas backpack purse handbag strap glasses sunglasses spectacles
goggles pillow pillows cushion cushions blanket armchair recliner sofa couch loveseat stool ottoman mattress
headboard drawer cupboard
"""
EVERYDAY = [*_WORDS.split(), *map(str, range(100))]

PROMPTS = ("a photo of a {}", "{}", "a {}", "the {}", "a picture of the {}", "a cropped photo of a {}")

# Other names of COCO's classes: what every member of the class, and none of another, may be called.
SYNONYMS = {
    "person": ("human", "human being"),
    "bicycle": ("bike",),
    "car": ("automobile", "vehicle"),
    "motorcycle": ("motorbike",),
    "airplane": ("plane", "aeroplane", "aircraft"),
    "boat": ("ship",),
    "traffic light": ("stoplight", "traffic signal"),
    "fire hydrant": ("hydrant",),
    "cat": ("kitty",),
    "dog": ("hound",),
    "cow": ("cattle",),
    "backpack": ("rucksack",),
    "handbag": ("purse",),
    "tie": ("necktie",),
    "suitcase": ("luggage", "piece of luggage"),
    "skis": ("pair of skis",),
    "sports ball": ("ball",),
    "tennis racket": ("racquet", "racket"),
    "wine glass": ("goblet",),
    "cup": ("mug",),
    "donut": ("doughnut",),
    "couch": ("sofa", "settee"),
    "potted plant": ("plant", "houseplant"),
    "dining table": ("table", "dinner table"),
    "tv": ("television",),
    "laptop": ("notebook computer", "computer"),
    "remote": ("remote control",),
    "cell phone": ("phone", "mobile phone", "smartphone"),
    "refrigerator": ("fridge",),
    "clock": ("timepiece",),
    "teddy bear": ("stuffed animal", "stuffed bear"),
    "hair drier": ("hair dryer", "blow dryer"),
    "mouse": ("computer mouse",),
    "keyboard": ("computer keyboard",),
}
