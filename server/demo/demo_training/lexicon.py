"""The words of the demo's small world, each with its French word.

Every noun is masculine and starts with a consonant, and every adjective is one that French puts in
front of its noun. So translating word by word gives correct French, without agreement, elision or a
change of order.
"""

from __future__ import annotations

DETERMINERS: dict[str, str] = {
    "the": "le",
    "a": "un",
    "my": "mon",
    "your": "ton",
    "his": "son",
    "this": "ce",
    "every": "chaque",
}

ADJECTIVES: dict[str, str] = {
    "small": "petit",
    "big": "grand",
    "old": "vieux",
    "young": "jeune",
    "pretty": "joli",
    "good": "bon",
    "bad": "mauvais",
    "new": "nouveau",
    "fat": "gros",
    "brave": "brave",
    "kind": "gentil",
    "real": "vrai",
    "poor": "pauvre",
    "handsome": "beau",
    "nasty": "vilain",
    "dear": "cher",
}

ACTORS: dict[str, str] = {
    "dog": "chien",
    "cat": "chat",
    "fox": "renard",
    "wolf": "loup",
    "rabbit": "lapin",
    "horse": "cheval",
    "king": "roi",
    "prince": "prince",
    "boy": "garçon",
    "baker": "boulanger",
    "fisherman": "pêcheur",
    "farmer": "fermier",
    "soldier": "soldat",
    "doctor": "médecin",
    "wizard": "sorcier",
    "dragon": "dragon",
    "pig": "cochon",
    "duck": "canard",
    "lion": "lion",
    "tiger": "tigre",
    "monkey": "singe",
    "fish": "poisson",
    "snake": "serpent",
    "toad": "crapaud",
    "knight": "chevalier",
    "giant": "géant",
    "ghost": "fantôme",
}

THINGS: dict[str, str] = {
    "garden": "jardin",
    "castle": "château",
    "boat": "bateau",
    "village": "village",
    "bread": "pain",
    "cake": "gâteau",
    "cheese": "fromage",
    "hat": "chapeau",
    "book": "livre",
    "knife": "couteau",
    "treasure": "trésor",
    "gift": "cadeau",
    "basket": "panier",
    "mirror": "miroir",
}

VERBS: dict[str, str] = {
    "sees": "voit",
    "likes": "aime",
    "finds": "trouve",
    "follows": "suit",
    "hears": "entend",
    "hides": "cache",
    "paints": "peint",
    "draws": "dessine",
    "wants": "veut",
    "loves": "adore",
    "helps": "aide",
    "watches": "regarde",
    "carries": "porte",
    "visits": "visite",
    "takes": "prend",
    "sells": "vend",
    "buys": "achète",
    "forgets": "oublie",
}

PARTICIPLES: dict[str, str] = {
    "sees": "seen",
    "likes": "liked",
    "finds": "found",
    "follows": "followed",
    "hears": "heard",
    "hides": "hidden",
    "paints": "painted",
    "draws": "drawn",
    "wants": "wanted",
    "loves": "loved",
    "helps": "helped",
    "watches": "watched",
    "carries": "carried",
    "visits": "visited",
    "takes": "taken",
    "sells": "sold",
    "buys": "bought",
    "forgets": "forgotten",
}

PREPOSITIONS: dict[str, str] = {
    "in": "dans",
    "behind": "derrière",
    "under": "sous",
    "with": "avec",
    "for": "pour",
    "without": "sans",
    "towards": "vers",
}

NOUNS: dict[str, str] = ACTORS | THINGS
FRENCH: dict[str, str] = DETERMINERS | ADJECTIVES | NOUNS | VERBS | PREPOSITIONS
